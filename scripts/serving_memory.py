"""The memory that a packed checkpoint takes when it is served, from its own bytes: weights in each form, and the cache.

    python scripts/serving_memory.py CKPT [CKPT ...] [--tokens 4096 32768]

Prints a Markdown table. Weights in bfloat16 are those of the original. The cache has the keys and values of that many
tokens, all requests together, for a model whose layers all keep every token; engines add the unused rest of a page.
"""

import argparse
import sys
from pathlib import Path

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.checkpoint.byte_counts import KEPT
from nestquant_cli.checkpoint.inspect import inspect
from nestquant_cli.checkpoint.read import read_layout
from nestquant_cli.modules.inputs import padded_size
from nestquant_cli.modules.layout import Layout
from nestquant_cli.storage.files import read_json

HEADERS = "safetensors headers"  # on the disk alone


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="CKPT")
    parser.add_argument("--tokens", nargs="+", type=int, default=[4096, 32768], help="in the cache")
    options = parser.parse_args()
    columns = ["", "bfloat16", "int8 in memory", "packed in memory"]
    columns += [f"cache of {count:,} tokens, {bits}" for count in options.tokens for bits in ("16 bits", "packed")]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    try:
        for folder in options.checkpoints:
            whole, plain, packed = weights(folder), *cache(folder)
            cells = [whole["bfloat16"], whole["int8"], whole["packed"]]
            for count in options.tokens:
                cells += [count * plain, count * packed]
            print(f"| {folder.name} | {' | '.join(f'{cell / 1e6:,.1f} MB' for cell in cells)} |")
    except NestQuantError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def weights(folder: Path) -> dict[str, int]:
    """Bytes of all weights in each form; those that are not quantized count in all of them."""
    found = inspect(folder)
    kept = sum(part.bytes for part in found.parts if part.group == KEPT and part.name != HEADERS)
    scales = sum(matrix.scale_bytes for matrix in found.matrices)
    int8 = sum(matrix.shape[0] * padded_size(matrix.shape[1]) for matrix in found.matrices)
    return {
        "bfloat16": kept + 2 * sum(matrix.weights for matrix in found.matrices),
        "int8": kept + scales + int8,
        "packed": kept + scales + sum(matrix.word_bytes for matrix in found.matrices),
    }


def cache(folder: Path) -> tuple[int, int]:
    """Bytes of the keys and values of one token in all layers, in 16 bits and as the checkpoint codes them."""
    config = read_json(folder / "config.json")
    text = config.get("text_config") or config
    heads = text.get("num_key_value_heads") or text["num_attention_heads"]
    size = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
    return per_token(read_layout(folder), text["num_hidden_layers"], heads, size)


def per_token(layout: Layout, layers: int, heads: int, size: int) -> tuple[int, int]:
    """Bytes of the keys and values of one token, in 16 bits and as the layout codes them."""
    plain = 2 * heads * size * 2
    coded = [codes for codes in layout.cache if codes is not None]
    packed = sum(heads * (codes.keys.vector_bytes(size) + codes.values.vector_bytes(size)) for codes in coded)
    return layers * plain, packed + (layers - len(coded)) * plain


if __name__ == "__main__":
    sys.exit(main())
