"""Which channels are removed and what replaces them: layer statistics, importance, prune, merge, reconstruct, budgets."""
