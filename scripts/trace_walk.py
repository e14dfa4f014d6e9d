"""Walks one weight, one activation and one key through the package, file by file.

    python scripts/trace_walk.py                              # prints the walks
    python scripts/trace_walk.py --figures docs/figures       # draws them as well

The script makes a tiny Llama with random weights, quantizes, loads and runs it; it downloads nothing. A walk lists the
functions of the package in the order of their first call, as a reader meets them. A move is a step from one file to
another; a return is a move to a file that was left before.
"""

import argparse
import itertools
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from nestquant_cli.models.source import resolve
from nestquant_cli.pipeline.quantize import quantize
from nestquant_cli.pipeline.recipe import Recipe
from nestquant_cli.quantization.layer import quantize_group
from nestquant_cli.storage.files import replacing

if TYPE_CHECKING:
    from scripts.walks import Walk, record, walk_of
else:
    from walks import Walk, record, walk_of  # the script's own folder is on the path of a script that is run

HEADS, HEAD_SIZE, INNER = 2, 32, 128  # of the tiny model; its width is HEADS * HEAD_SIZE
TEXT = "\n\n".join(f"{number}. A short line of text that stands for a corpus." for number in range(40))
TITLES = {
    "weight": "one weight: quantize_group",
    "run": "one weight: the whole run",
    "load": "loading the checkpoint",
    "activation": "one activation: the forward of a quantized Linear",
    "key": "one key: cache update and attention",
}
DRAWN = ("weight", "activation", "key")
DPI = 110


def make_model(folder: Path) -> None:
    """Writes a Llama of one layer with random bfloat16 weights, and a tokenizer with one token a byte."""
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=HEADS * HEAD_SIZE,
        intermediate_size=INNER,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(["<s>", "</s>", *alphabet])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)


def trace(folder: Path) -> dict[str, Walk]:
    """The walks by the names of TITLES. Works in `folder`, which is empty."""
    make_model(folder / "model")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    recipe = Recipe(dataset=str(folder / "text.txt"), samples=2, seqlen=64)
    source, packed = resolve(str(folder / "model")), folder / "packed"
    run, _ = record(lambda: quantize(source, recipe, packed, "cpu"), quantize_group.__code__)
    load, model = record(lambda: AutoModelForCausalLM.from_pretrained(packed).eval())
    walks = {"weight": walk_of(run.calls[run.start : run.stop]), "run": walk_of(run.calls), "load": walk_of(load.calls)}
    return walks | trace_forward(model)


@torch.inference_mode()
def trace_forward(model: Any) -> dict[str, Walk]:
    """The walks of an activation and a key through a loaded model, after a prompt of four tokens."""
    cache = model(torch.arange(2, 6)[None]).past_key_values
    attention, dtype = model.model.layers[0].self_attn, model.dtype
    token = torch.randn(1, 1, HEADS * HEAD_SIZE).to(dtype)  # (batch, tokens, features)
    head = torch.randn(1, HEADS, 1, HEAD_SIZE).to(dtype)  # (batch, heads, tokens, head size)

    @torch.inference_mode()  # of the thread that runs this
    def activation() -> Any:
        return attention.o_proj(token)

    @torch.inference_mode()
    def key() -> Any:
        keys, values = cache.update(head, head, 0)
        return F.scaled_dot_product_attention(head, keys, values)

    return {"activation": walk_of(record(activation)[0].calls), "key": walk_of(record(key)[0].calls)}


def show(name: str, walk: Walk) -> None:
    """Prints a walk: its counts, then each file with the functions that are called first there."""
    rooms = walk.rooms
    print(f"\n{TITLES[name]}: {len(walk.functions)} functions in {len(walk.files)} files")
    print(f"between files: {walk.moves} moves, {walk.returns} returns")
    print(f"between folders: {len(rooms) - 1} moves, {len(rooms) - len(set(rooms))} returns")
    for file, functions in itertools.groupby(walk.functions, lambda function: function.file):
        print(f"  {file:40} {', '.join(function.name for function in functions)}")


def draw(path: Path, walk: Walk) -> None:
    """Draws a walk: a row for each file, grouped by folder, and a numbered box for each visit, from left to right."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    folders = list(dict.fromkeys(Path(file).parent for file in walk.files))
    files = sorted(walk.files, key=lambda file: folders.index(Path(file).parent))  # stable: by first visit in a folder
    rows = {file: -number for number, file in enumerate(files)}
    visits = [(number + 1, rows[file]) for number, file in enumerate(walk.path)]
    figure = Figure(figsize=(3.2 + 0.32 * len(visits), 0.9 + 0.3 * len(files)), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots()
    for file, row in rows.items():
        shade = "0.93" if folders.index(Path(file).parent) % 2 else "1.0"
        axes.axhspan(row - 0.5, row + 0.5, color=shade, linewidth=0)
    for (x, y), (to_x, to_y) in itertools.pairwise(visits):
        style = {"arrowstyle": "-|>", "color": "tab:blue", "linewidth": 0.9, "shrinkA": 7, "shrinkB": 8}
        axes.annotate("", (to_x, to_y), (x, y), arrowprops=style)
    seen: set[int] = set()
    for x, y in visits:
        color = "tab:orange" if y in seen else "white"
        seen.add(y)
        box = {"boxstyle": "round,pad=0.22", "facecolor": color, "edgecolor": "tab:blue", "alpha": 1.0}
        axes.text(x, y, str(x), ha="center", va="center", fontsize=7, bbox=box, zorder=3)
    axes.set_yticks(list(rows.values()), files, fontsize=8)
    axes.set_xlim(0, len(visits) + 1)
    axes.set_ylim(-len(files) + 0.5, 0.5)
    axes.set_xticks([])
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)


def main(arguments: list[str] | None = None) -> None:
    """Prints the walks and draws them if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figures", type=Path, metavar="DIR", help="folder for the pictures; needs matplotlib")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        walks = trace(Path(folder))
    for name, walk in walks.items():
        show(name, walk)
    for name in DRAWN if options.figures else ():
        draw(options.figures / f"walk-{name}.png", walks[name])


if __name__ == "__main__":
    main()
