"""The entry point of vLLM's plugins."""


def register() -> None:
    """Makes vLLM know `quant_method: nestquant`; vLLM calls it in each of its processes, maybe more than once.

    The modules are imported each time, whatever is registered already: unpickling a config may have imported `config`
    before. None of them imports Numba: vLLM's CPU worker, when it starts, looks into the objects of all modules and
    fails at one of llvmlite's.
    """
    from vllm.model_executor.layers.quantization import register_quantization_config

    from .config import METHOD, CheckpointConfig

    register_quantization_config(METHOD)(CheckpointConfig)
