"""Original models: what a name means, which files hold the weights, and how they are read.

A name becomes a `resolve.Source`; `hub` and `weight_set` say which files it has. `source` gives configuration,
tokenizer and hash, `load` the whole model, and `weights` a model whose layers are in memory one at a time. `shards` and
`shard_writer` read and write safetensors files. `limits`, `structure` and `vocabulary` refuse what cannot be quantized.
"""
