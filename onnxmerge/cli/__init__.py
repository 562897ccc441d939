"""The command line: it translates words into calls of the Python API and results into text, and nothing else."""
