"""What transformers knows of packed checkpoints, and what packed checkpoints say to transformers.

There are two doors. `import nestquant_cli` calls `registration`, which gives transformers the two classes of
`quantizer`. A checkpoint that is loaded with `trust_remote_code=True` brings a copy of `modeling_nestquant.py`, which
imports `auto`, and thereby the package. Either way transformers then reads `quant_method: nestquant` and calls
`quantizer`. In reading order:

`registration` registers the quantizer, now or when transformers is imported.
`quantizer` checks a checkpoint, builds its packed modules, or quantizes a model that is not packed.
`config_entries` has the entries of config.json by which transformers knows a packed checkpoint.
`auto` and `modeling_nestquant` serve `trust_remote_code=True`.
`on_hub` fetches the records of a checkpoint that transformers loads by its Hub id, so that it is checked as well.
`saving` makes `save_pretrained` write a whole checkpoint.
"""
