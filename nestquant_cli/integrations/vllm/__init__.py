"""What vLLM knows of packed checkpoints: `vllm serve CKPT` loads them by the plugin that this package registers.

Importing nestquant never imports vllm, and this file imports nothing. In reading order:

`entry` is the entry point of `vllm.general_plugins`, which vLLM calls in each of its processes.
`config` has the entry `quantization_config` of config.json, and says which method each layer of a model gets.
`names` finds the matrices of the layout in a layer of vLLM, which may fuse several.
`model_class` knows what vLLM's class of a model says of its layers, and refuses some classes.
`state` is what the layers of one model share while it is built.
`weights` has a layer's parameters while vLLM loads them, and what is made of them.
`loader` is vLLM's loader of models, which says in one line where vLLM stopped.
`linear` multiplies; `operators` is what torch.compile sees of it.
`row_parallel` has layers whose input is split among the processes of a tensor-parallel model: `shares` says what each
process has, `columns` cuts stored matrices.
`experts` has mixtures of experts: `expert_names` finds their matrices, `hub_names` renames the tensors of some models,
`expert_weights` loads them, `coded_experts` multiplies.
`cache` has packed keys and values in vLLM's pages.
"""
