"""Times a mixture of experts with int8 weights against bfloat16 in transformers, in one run, with random weights.

    python scripts/bench_experts.py [--layers 8] [--experts 64] [--tokens 1 512 2048] [--act-bits 16] [--threads N]

The model has the structure of Qwen3-MoE; the default has 0.8 · 10⁹ entries in experts, more than caches hold. bfloat16
runs with transformers' default implementation of experts, the packed model (W4 codes, int8 in memory unless --resident
packed) with nestquant's. One matrix of each shape is rounded and all Linears of the shape get its words: time does not
depend on them. The two models run in turns, and each result is a median. For 1 token it is a step of generation after a
prompt of 32 tokens, for more a forward of so many tokens.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen3MoeConfig
from transformers.initialization import no_init_weights

from nestquant_cli.codecs.nested.code import ScaledCode
from nestquant_cli.codecs.row_scale import row_scale_bits
from nestquant_cli.e8.code import NestedCode
from nestquant_cli.e8.shape import shape_for_bits
from nestquant_cli.kernels import for_device
from nestquant_cli.models.structure import linears, open_decoder
from nestquant_cli.modules.attach import attach, quantized_linears
from nestquant_cli.modules.layout import Layout, LinearLayout
from nestquant_cli.modules.resident import resident_bytes, set_resident

MULTIPLIERS = (3, 4, 5, 6, 9)
PAST = 32  # tokens in the cache of a step of generation


def main() -> None:
    """Builds both models, measures and prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--inner", type=int, default=512, help="features inside an expert")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--top", type=int, default=8, help="experts of a token")
    parser.add_argument("--tokens", type=int, nargs="*", default=[1, 512, 2048])
    parser.add_argument("--act-bits", type=int, default=16, help="bits of activations; 16 leaves them alone")
    parser.add_argument("--resident", choices=["int8", "packed"], default="int8")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    plain = random_model(options)
    before = sum(parameter.nbytes for parameter in plain.model.layers.parameters())
    packed = packed_model(options)
    set_resident(packed, options.resident)
    print(f"layers: {before / 1e6:.0f} MB in bfloat16, {resident_bytes(packed) / before:.2f} × {options.resident}")
    for tokens in options.tokens:
        ids = torch.randint(options.hidden, (1, tokens + (PAST if tokens == 1 else 0)))
        runs = {"bfloat16": run(plain, ids, tokens), options.resident: run(packed, ids, tokens)}
        print(f"{tokens} token{'s' * (tokens > 1)}: {compared(runs, options.repeats)}", flush=True)


def random_model(options: argparse.Namespace) -> Any:
    """A model in bfloat16."""
    settings: dict[str, Any] = {
        "vocab_size": options.hidden,
        "hidden_size": options.hidden,
        "num_hidden_layers": options.layers,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": options.hidden // 8,
        "num_experts": options.experts,
        "num_experts_per_tok": options.top,
        "moe_intermediate_size": options.inner,
    }
    config = Qwen3MoeConfig(**settings)
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    for parameter in model.parameters():
        matrices = parameter.detach() if parameter.dim() == 3 else parameter.detach()[None]
        matrices.copy_(random_matrix(tuple(matrices.shape[1:])))
    return model


@cache
def random_matrix(shape: tuple[int, ...]) -> Tensor:
    """Weights of a matrix, and ones for a norm."""
    return torch.ones(shape) if len(shape) == 1 else torch.randn(shape) / shape[-1] ** 0.5


def packed_model(options: argparse.Namespace) -> Any:
    """The same structure with packed weights of 4 bits."""
    model = random_model(options)
    shape = shape_for_bits(4)
    code = shape.with_multipliers(MULTIPLIERS)
    act = None if options.act_bits == 16 else shape_for_bits(options.act_bits)
    layout = Layout(shape, act, None, seed=0)
    decoder = open_decoder(model)
    for index, layer in enumerate(decoder.layers):
        for name, linear in linears(layer).items():
            source = f"{decoder.layer_name(index)}.{shared_input(name)}"
            layout.linears[f"{decoder.layer_name(index)}.{name}"] = LinearLayout(
                linear.in_features, linear.out_features, linear.bias is not None, source, code
            )
            layout.inputs[source] = None if act is None else ScaledCode(act.with_multipliers(MULTIPLIERS), 0.035)
    attach(model, layout)
    for module in quantized_linears(model).values():
        words, scale = rounded(module.out_features, module.in_features, code)
        module.words.copy_(words)
        module.row_scale.copy_(scale)
    return model


def shared_input(name: str) -> str:
    """A name for the input of a Linear: all experts of a parameter have one, and q, k and v."""
    parent, _, leaf = name.partition(".expert_")[0].rpartition(".")
    return f"{parent}.qkv" if leaf in ("q_proj", "k_proj", "v_proj") else f"{parent}.{leaf}"


@cache
def rounded(rows: int, entries: int, code: NestedCode) -> tuple[Tensor, Tensor]:
    """Words and row scales of a random matrix."""
    kernels, scale = for_device(torch.device("cpu")), torch.full((rows,), 0.035)
    v, index, _ = kernels.quantize(torch.randn(rows, entries), scale, code)
    return kernels.pack(v, index, code), row_scale_bits(scale / entries**0.5)


def run(model: Any, ids: Tensor, tokens: int) -> Callable[[], None]:
    """A forward of so many tokens, with the others in the cache before."""
    if tokens == ids.shape[1]:
        return lambda: model(input_ids=ids, use_cache=False)
    with torch.inference_mode():
        past = model(input_ids=ids[:, :-tokens], use_cache=True).past_key_values

    def step() -> None:
        model(input_ids=ids[:, -tokens:], past_key_values=past, use_cache=True)
        past.crop(-tokens)

    return step


@torch.inference_mode()
def compared(runs: dict[str, Callable[[], None]], repeats: int) -> str:
    """Medians of both, in turns, and the ratio of the second to the first."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for name, once in (pair for _ in range(repeats + 1) for pair in runs.items()):
        start = time.perf_counter()
        once()
        times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(found[1:]) for name, found in times.items()}  # the first one warms up
    first, second = medians.values()
    said = ", ".join(f"{name} {median * 1e3:.1f} ms" for name, median in medians.items())
    return f"{said}: {second / first:.2f} ×"


if __name__ == "__main__":
    main()
