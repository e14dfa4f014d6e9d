"""Tunes the continuous numbers of a packed checkpoint towards the original: what `nestquant tune` runs.

`tune` takes the steps. `held_out` cuts the windows, `distill` has the loss and `parameters` what moves; `state` is the
optimizer, `settings` its validated settings, and `result` writes the new checkpoint.
"""
