"""What people and programs read: terminal, HTML pages, JSON, progress."""
