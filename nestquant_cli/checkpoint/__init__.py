"""Packed checkpoints on disk (docs/format.md).

`output` writes one, with the hashes of `manifest`. `read` checks one before it is loaded, and `load` loads a model,
packed or not. `verify` checks everything in it: `tensors` against the manifest and `expected`, `matrices` against their
codes, `original` against the model it was made from; `findings` is its result. `inspect` counts bytes into
`byte_counts`. `auto` is the address that the loader in every checkpoint imports from.
"""
