"""How the matrices of a GGUF file are stored: a model from such a file was rounded before, and reports say how.

Only the header is read. The reader of the package gguf makes an object of every token of the vocabulary, which takes
seconds.
"""

import struct
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a value, by its type
_STRING, _ARRAY = 8, 9
_FLOATS = ("F64", "F32", "F16", "BF16")


def matrix_types(path: Path) -> list[str]:
    """Names of the types of all tensors with two dimensions or more, such as "Q4_1"; that of most entries first.

    Raises:
        ValueError: not the header of a little-endian GGUF file of version 2 or 3.
    """
    from gguf import GGMLQuantizationType

    counts: Counter[str] = Counter()
    try:
        with open(path, "rb") as file:
            magic, version, tensors, values = struct.unpack("<4sIQQ", file.read(24))
            if magic != b"GGUF" or version not in (2, 3):
                raise ValueError(f"{path} is no GGUF file of version 2 or 3")
            for _ in range(values):
                _skip_string(file)
                _skip_value(file, _read(file, "<I"))
            for _ in range(tensors):
                _skip_string(file)
                entries, dimensions = 1, _read(file, "<I")
                for _ in range(dimensions):
                    entries *= _read(file, "<Q")
                kind = _read(file, "<I")
                file.seek(8, 1)  # where its data is
                if dimensions > 1:
                    counts[GGMLQuantizationType(kind).name] += entries
    except (struct.error, KeyError, OverflowError, OSError, RecursionError) as error:
        raise ValueError(f"the header of {path} is damaged") from error
    return [name for name, _ in counts.most_common()]


def described(about: dict[str, Any]) -> str:
    """How a model's weights were stored and are computed with, from its part of a protocol.

    Args:
        about: with `dtype`, and `gguf_types` where it came from a GGUF file.

    Returns:
        such as "bfloat16", or "GGUF file (Q4_1, Q8_0), de-quantized to bfloat16".
    """
    types = about.get("gguf_types")
    if not types:
        return str(about["dtype"])
    verb = "read as" if set(types) <= set(_FLOATS) else "de-quantized to"
    return f"GGUF file ({', '.join(types)}), {verb} {about['dtype']}"


def _read(file: BinaryIO, form: str) -> int:
    number: int = struct.unpack(form, file.read(struct.calcsize(form)))[0]
    return number


def _skip_string(file: BinaryIO) -> None:
    file.seek(_read(file, "<Q"), 1)


def _skip_value(file: BinaryIO, kind: int) -> None:
    if kind == _STRING:
        _skip_string(file)
    elif kind == _ARRAY:
        inner, count = _read(file, "<I"), _read(file, "<Q")
        if inner in _SIZES:
            file.seek(_SIZES[inner] * count, 1)
        else:
            for _ in range(count):
                _skip_value(file, inner)
    else:
        file.seek(_SIZES[kind], 1)
