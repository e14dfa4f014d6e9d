"""The quantization of a GGUF file, from its header.

`gguf.GGUFReader` gives it, too, but makes an array of every entry of the vocabulary first, which takes seconds.
"""

import struct
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

UNQUANTIZED = ("F32", "F16", "BF16", "F64")
_KEY = "general.file_type"
_STRING, _ARRAY = 8, 9
_FORMS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_LONGEST = 1 << 24  # bytes of one string: a header may be damaged


@lru_cache(maxsize=8)
def gguf_type(path: Path) -> str | None:
    """Such as "Q4_1" or "Q4_K_M": what the file says of itself, else the type of most of its entries.

    None where the header cannot be read, or the type is one that this version of gguf has no name for.
    """
    from gguf import GGMLQuantizationType, LlamaFileType

    try:
        with open(path, "rb") as file:
            declared, types = _header(file)
        if declared is not None:
            return LlamaFileType(declared).name.removeprefix("MOSTLY_").removeprefix("ALL_")
        return GGMLQuantizationType(types.most_common(1)[0][0]).name
    except (OSError, ValueError, LookupError, struct.error):
        return None


def _header(file: BinaryIO) -> tuple[int | None, Counter[int]]:
    """The declared type, if there is one; else how many entries tensors of each type have."""
    magic, _, tensors, keys = _read(file, "4sIQQ")
    if magic != b"GGUF":
        raise ValueError("no GGUF file")
    for _ in range(keys):
        name = _string(file)
        (kind,) = _read(file, "I")
        value = _value(file, kind)
        if name == _KEY.encode():
            return int(value), Counter()
    types: Counter[int] = Counter()
    for _ in range(tensors):
        _string(file)
        (dimensions,) = _read(file, "I")
        entries = 1
        for _ in range(dimensions):
            entries *= _read(file, "Q")[0]
        kind, _ = _read(file, "IQ")
        types[kind] += entries
    return None, types


def _value(file: BinaryIO, kind: int) -> Any:
    """A single value; an array is passed over."""
    if kind == _STRING:
        return _string(file)
    if kind != _ARRAY:
        return _read(file, _FORMS[kind])[0]
    inner, count = _read(file, "IQ")
    if inner in (_STRING, _ARRAY):
        for _ in range(count):
            _value(file, inner)
    else:
        file.seek(count * struct.calcsize(f"<{_FORMS[inner]}"), 1)
    return None


def _string(file: BinaryIO) -> bytes:
    (length,) = _read(file, "Q")
    if length > _LONGEST:
        raise ValueError("a string of the header is too long")
    return file.read(length)


def _read(file: BinaryIO, form: str) -> tuple[Any, ...]:
    return struct.unpack(f"<{form}", file.read(struct.calcsize(f"<{form}")))
