"""Walks one weight, one activation and one key through the package, file by file.

    python scripts/trace_walk.py                              # prints the walks
    python scripts/trace_walk.py --figures docs/figures       # draws them as well

The script makes a tiny Llama with random weights, quantizes, loads and runs it; it downloads nothing. A walk lists the
functions of the package in the order of their first call, as a reader meets them. A move is a step from one file to
another; a return is a move to a file that was left before.
"""

import argparse
import functools
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import nestquant_cli
from nestquant_cli.models.source import resolve
from nestquant_cli.parallel.tiles import run_pieces
from nestquant_cli.pipeline.quantize import quantize
from nestquant_cli.pipeline.recipe import Recipe
from nestquant_cli.quantization.layer import quantize_group
from nestquant_cli.storage.files import replacing

PACKAGE = Path(nestquant_cli.__file__).resolve().parent
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


@dataclass(frozen=True)
class Function:
    """A function of the package.

    Attributes:
        file: path below the package, such as "e8/code.py".
        name: qualified name.
        line: first line.
    """

    file: str
    name: str
    line: int


@dataclass(frozen=True)
class Walk:
    """Functions in the order of their first call.

    Attributes:
        functions: each one once.
    """

    functions: tuple[Function, ...]

    @property
    def path(self) -> list[str]:
        """Files in the order in which they are visited; one that is left and entered again is there twice."""
        return [file for file, _ in itertools.groupby(function.file for function in self.functions)]

    @property
    def files(self) -> list[str]:
        """Files in the order of their first visit."""
        return list(dict.fromkeys(self.path))

    @property
    def moves(self) -> int:
        """Steps from one file to another."""
        return len(self.path) - 1

    @property
    def returns(self) -> int:
        """Moves to a file that was left before."""
        return len(self.path) - len(self.files)

    @property
    def rooms(self) -> list[str]:
        """Folders of the package in the order in which they are visited, with all that is in them."""
        return [room for room, _ in itertools.groupby(file.split("/")[0] for file in self.path)]


@dataclass
class Recorder:
    """Records the package's functions that a thread calls.

    Attributes:
        inner: code of a function whose first call is marked.
        calls: every call, in order.
        start: number of calls before the marked one; -1 before it comes.
        stop: number of calls when it returned.
    """

    inner: CodeType | None = None
    calls: list[Function] = field(default_factory=list)
    start: int = -1
    stop: int = -1
    _frame: FrameType | None = None

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        """A profile function for `sys.setprofile`."""
        if event == "return" and frame is self._frame:
            self._frame, self.stop = None, len(self.calls)
        if event != "call":
            return
        if frame.f_code is self.inner and self.start < 0:
            self._frame, self.start = frame, len(self.calls)
        function = _function(frame.f_code)
        if function is not None and not _compiling(frame):
            self.calls.append(function)


@functools.cache
def _function(code: CodeType) -> Function | None:
    """The function of the package that a code object is; None for lambdas, modules, class bodies and other code."""
    path, name = Path(code.co_filename), code.co_name
    if name.startswith("<") or "__qualname__" in code.co_names or not path.is_relative_to(PACKAGE):
        return None
    return Function(path.relative_to(PACKAGE).as_posix(), name, code.co_firstlineno)


def _compiling(frame: FrameType | None) -> bool:
    """Whether Numba calls this to compile something, which it does once on a machine."""
    while frame is not None:
        if "/numba/" in frame.f_code.co_filename:
            return True
        frame = frame.f_back
    return False


def record(work: Callable[[], Any], inner: CodeType | None = None) -> tuple[Recorder, Any]:
    """Runs `work` and records it.

    It runs as one piece of `run_pieces`, so that whatever it divides into pieces stays on the thread that is recorded.

    Returns:
        the recorder, and what `work` returned.
    """
    recorder, results = Recorder(inner), []

    def piece(_: None) -> None:
        sys.setprofile(recorder)
        try:
            results.append(work())
        finally:
            sys.setprofile(None)

    run_pieces(piece, [None])
    return recorder, results[0]


def walk_of(calls: Iterable[Function]) -> Walk:
    """The walk of some calls."""
    return Walk(tuple(dict.fromkeys(calls)))


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
