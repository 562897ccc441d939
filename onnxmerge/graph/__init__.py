"""What a model is: operator table, channel ids, channel groups, cost, and the rewrite that removes channels."""
