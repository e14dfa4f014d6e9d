"""Times the packed KV cache against transformers' 16-bit DynamicCache in one run, with the same 16-bit model.

    python scripts/bench_cache.py [MODEL] [--codes CKPT] [--contexts 128 1024 4096] [--prompt 2048] [--threads N]

MODEL is any model of the command line that is not packed; the default is `demo`. --codes takes the codes of a packed
checkpoint of the same model; without it, all layers have one code without centers. The two caches run in turns, and
each result is a median. The past of a context is random, because time does not depend on it. `attention` is the cache
and the attention of all layers for one token; `prompt` is a forward of a prompt with the cache, `update` the time of it
that is spent in the cache.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers.cache_utils import DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from nestquant_cli.checkpoint.load import load_model
from nestquant_cli.checkpoint.read import read_layout
from nestquant_cli.codecs.nested.fit import SAMPLE_BLOCKS, fit_scales
from nestquant_cli.e8.shape import shape_for_bits
from nestquant_cli.models.source import resolve
from nestquant_cli.modules.cache import PackedCache
from nestquant_cli.modules.cache_codes import CacheCodes
from nestquant_cli.storage.files import write_json

Maker = Callable[[], Any]
KINDS = ("bf16", "packed")


def main() -> None:
    """Measures, prints the table and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--codes", type=Path, metavar="CKPT", help="take the codes of this packed checkpoint")
    parser.add_argument("--bits", type=float, default=4.0, help="bits of the codes without --codes")
    parser.add_argument("--contexts", type=int, nargs="*", default=[128, 1024, 4096])
    parser.add_argument("--prompt", type=int, default=2048, help="tokens in the prompt, 0 for none")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--prompt-repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model: Any = load_model(resolve(options.model))
    config = model.config.get_text_config(decoder=True)
    codes, seed = codes_of(options, config.num_hidden_layers)
    makers: dict[str, Maker] = {
        "bf16": lambda: DynamicCache(config=config),
        "packed": lambda: PackedCache(config, codes, seed),
    }
    results = []
    with torch.no_grad():
        for tokens in options.contexts:
            results += measure_context(model, config, makers, tokens, options.repeats)
        if options.prompt:
            results += measure_prompt(model, config, makers, options.prompt, options.prompt_repeats)
    kind = f"codes of {options.codes}" if options.codes else f"{options.bits:g} bits"
    title = f"{options.model}, {kind}, {options.threads} threads"
    Console().print(table(results, title))
    if options.output:
        machine = {"processor": platform.processor() or platform.machine(), "threads": options.threads}
        settings = {"model": options.model, "codes": kind}
        write_json(options.output, {"machine": machine, "torch": torch.__version__, **settings, "results": results})


def codes_of(options: argparse.Namespace, layers: int) -> tuple[list[CacheCodes | None], int | None]:
    """The codes of every layer, and the seed of their rotation."""
    if options.codes is None:
        scaled = fit_scales(torch.randn(SAMPLE_BLOCKS, 8), shape_for_bits(options.bits))
        return [CacheCodes(scaled, scaled)] * layers, 0
    layout = read_layout(options.codes)
    if len(layout.cache) != layers:
        raise SystemExit(f"{options.codes} has codes for {len(layout.cache)} layers, the model has {layers}")
    return list(layout.cache), layout.rotation_seed


def shapes(config: Any) -> tuple[int, int, int]:
    """Query heads, key heads and head size."""
    heads = config.num_attention_heads
    return (
        heads,
        getattr(config, "num_key_value_heads", heads),
        getattr(config, "head_dim", config.hidden_size // heads),
    )


def measure_context(model: Any, config: Any, makers: dict[str, Maker], tokens: int, repeats: int) -> list[dict]:
    """Results for one token after `tokens` others: memory, the attention of all layers, the whole model."""
    _, heads, size = shapes(config)
    caches = {kind: make() for kind, make in makers.items()}
    for layer in range(config.num_hidden_layers):
        states = [torch.randn(1, heads, tokens, size, dtype=model.dtype) for _ in range(2)]
        for cache in caches.values():
            cache.update(*states, layer)
    ids = torch.tensor([[1]])
    steps = {kind: partial(model, ids, past_key_values=cache) for kind, cache in caches.items()}
    whole = in_turns(steps, repeats)
    alone = in_turns({kind: partial(attend, model, config, cache) for kind, cache in caches.items()}, repeats)
    held = {kind: float(bytes_of(cache)) for kind, cache in caches.items()}
    name = f"{tokens} tokens"
    rows = (("memory, MB", 1e-6, held), ("attention, ms", 1e3, alone), ("one token, ms", 1e3, whole))
    return [row(name, what, {kind: factor * value for kind, value in of.items()}) for what, factor, of in rows]


def attend(model: Any, config: Any, cache: Any) -> None:
    """A function that runs cache and attention of all layers for one token, without projections."""
    queries, heads, size = shapes(config)
    states = [torch.randn(1, count, 1, size, dtype=model.dtype) for count in (queries, heads, heads)]
    module = torch.nn.Module()
    module.num_key_value_groups = queries // heads  # type: ignore[assignment]
    for layer in range(config.num_hidden_layers):
        seen = cache.update(*states[1:], layer)
        sdpa_attention_forward(module, states[0], seen[0], seen[1], None)


def measure_prompt(model: Any, config: Any, makers: dict[str, Maker], tokens: int, repeats: int) -> list[dict]:
    """Times a forward of `tokens` tokens into an empty cache, and the time of it that is spent in the cache."""
    ids = torch.randint(config.vocab_size, (1, tokens))
    spent: dict[str, list[float]] = {kind: [] for kind in KINDS}

    def forward(kind: str) -> None:
        cache = makers[kind]()
        update, seconds = cache.update, [0.0]

        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            result = update(*args, **kwargs)
            seconds[0] += time.perf_counter() - begin
            return result

        cache.update = timed
        model(ids, past_key_values=cache, logits_to_keep=1)
        spent[kind].append(seconds[0])

    whole = in_turns({kind: partial(forward, kind) for kind in KINDS}, repeats)
    update = {kind: statistics.median(times[1:]) for kind, times in spent.items()}
    name = f"prompt of {tokens}"
    return [
        row(name, what, {kind: 1e3 * value for kind, value in of.items()})
        for what, of in (("forward, ms", whole), ("update, ms", update))
    ]


def in_turns(steps: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each step, after one call that is not counted."""
    times: dict[str, list[float]] = {kind: [] for kind in steps}
    for turn in range(repeats + 1):
        for kind, step in steps.items():
            begin = time.perf_counter()
            step()
            if turn:
                times[kind].append(time.perf_counter() - begin)
    return {kind: statistics.median(values) for kind, values in times.items()}


def bytes_of(cache: Any) -> int:
    """Bytes that a cache holds."""
    return sum(part.untyped_storage().nbytes() for layer in cache.layers for part in (layer.keys, layer.values))


def row(case: str, what: str, figures: dict[str, float]) -> dict[str, Any]:
    return {"case": case, "what": what, **figures, "ratio": figures["packed"] / figures["bf16"]}


def table(results: list[dict[str, Any]], title: str) -> Table:
    made = Table(title=title)
    for name in ("case", "", "bf16 DynamicCache", "packed", "packed / bf16"):
        made.add_column(name, justify="left" if name in ("case", "") else "right")
    for result in results:
        made.add_row(
            result["case"], result["what"], *(f"{result[kind]:.2f}" for kind in KINDS), f"{result['ratio']:.3f}"
        )
    return made


if __name__ == "__main__":
    main()
