"""The command line: options and commands, translated into calls of the Python API."""
