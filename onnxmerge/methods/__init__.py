"""The methods: what to keep of a group, and what becomes of those that read it."""
