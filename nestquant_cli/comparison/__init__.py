"""Several quantizations of one model, compared by one protocol: what `nestquant compare` runs.

`compare` goes from names to files. `entries` are the recipes, `checkpoints` quantizes by them, `scoring` scores all on
the same windows, and `state` keeps what is done. `result` has the rows, `tables` and `plots` show them.
"""
