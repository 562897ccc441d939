"""The verbs compress, inspect and sweep: candidates, searches for a size, a fidelity or a latency, plan files."""
