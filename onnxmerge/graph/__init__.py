"""The only code that knows files, nodes and initializers."""
