"""Option types of the settings of a recipe that are for keys and values alone."""

from typing import Annotated

import typer

from .options import finite

KeyBitsOption = Annotated[
    float | None,
    typer.Option(
        "--key-bits",
        parser=finite,
        help="Bits of the keys in the cache, 2 to 8 in steps of 1/8. They win over --kv-bits.",
        show_default="--kv-bits",
    ),
]
ValueBitsOption = Annotated[
    float | None,
    typer.Option(
        "--value-bits",
        parser=finite,
        help="Bits of the values in the cache, 2 to 8 in steps of 1/8. They win over --kv-bits.",
        show_default="--kv-bits",
    ),
]
KvSkipLayersOption = Annotated[
    str | None,
    typer.Option(
        "--kv-skip-layers",
        metavar="NUMBERS",
        help="Layers whose keys and values stay in 16 bits, separated by commas: from 0 on, or from -1 on backwards, "
        "as in 0,1,-1.",
    ),
]
KvWindowOption = Annotated[
    int,
    typer.Option(
        "--kv-window",
        metavar="TOKENS",
        help="Number of the most recent tokens whose keys and values stay in 16 bits, that of the query included.",
    ),
]
KvSinksOption = Annotated[
    int,
    typer.Option(
        "--kv-sinks",
        metavar="TOKENS",
        help="Number of the first tokens of a text whose keys and values stay in 16 bits.",
    ),
]
KeyScalesOption = Annotated[
    bool,
    typer.Option(
        "--key-scales/--no-key-scales",
        help="Multiply the channels of keys by factors in front of the rotation, and divide them again when they are "
        "read (off by default).",
    ),
]
