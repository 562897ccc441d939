"""What a model is: operator table, channel ids, channel groups, cost, and the rewrite that removes channels.

`analysed_model` loads a model and gives its channel groups, which `channel_analysis` finds: it follows channel ids through the
`operators`, one rule for each. `rewrite` removes channels on a copy. `cost` and `cost_terms` count parameters and multiply-
accumulates, `merge_validity` says where merging is exact in principle, `downstream` what follows a layer.
"""
