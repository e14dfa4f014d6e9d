"""docs/format.md against the kernels, and against a slow decoder written from the document's text alone."""

import math
import re
import struct
from pathlib import Path

import pytest
import torch

from nestquant_cli.codecs.factored import factored_from
from nestquant_cli.codecs.nested.code import ScaledCode
from nestquant_cli.codecs.nested.linear import NestedLinear
from nestquant_cli.e8.code import NestedCode
from nestquant_cli.e8.rates import BEST
from nestquant_cli.e8.words import pack_words
from nestquant_cli.kernels import Kernels
from nestquant_cli.kernels.cpu import nested as cpu
from nestquant_cli.kernels.reference import nested as reference
from nestquant_cli.modules.cache_codes import unpack_heads
from nestquant_cli.modules.inputs import InputQuantizer
from nestquant_cli.rotation.transform import rotation

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "format.md").read_text(encoding="utf-8")
GENERATOR = [[int(x) for x in row.split()] for row in re.findall(r"^    (?:G =|   )((?: +-?\d){8})$", DOCUMENT, re.M)]
KERNELS = pytest.mark.parametrize("kernels", [reference, cpu], ids=["reference", "cpu"])
M64 = (1 << 64) - 1


def numbers(text: str) -> list[int]:
    return [int(x) for x in text.split()]


def code_of(q: int, multipliers: list[int], bits: int) -> NestedCode:
    return NestedCode(q, tuple(multipliers), bits, BEST[bits][2])


def tables() -> list[tuple[NestedCode, list[tuple[int, list[int], bool]]]]:
    result = []
    for title, body in re.findall(r"^### (q = .*?)\n(.*?)(?=^### )", DOCUMENT, re.M | re.S):
        q, multipliers, bits = re.fullmatch(r"q = (\d+), multipliers ([\d ]+), (\d+) bits", title).groups()  # type: ignore[union-attr]
        rows = re.findall(r"^\| `([0-9a-f]+)` \| `([-\d ]+)` \| (boundary)? *\|$", body, re.M)
        vectors = [(int(word, 16), numbers(v), bool(tie)) for word, v, tie in rows]
        result.append((code_of(int(q), numbers(multipliers), int(bits)), vectors))
    return result


def packed_rows() -> list[tuple[NestedCode, bytes, list[int]]]:
    rows = re.findall(r"^\| (\d+) \| `([\d ]+)` \| (\d+) \| `([0-9a-f]+)` \| `([-\d ]+)` \|$", DOCUMENT, re.M)
    return [(code_of(int(q), numbers(m), int(bits)), bytes.fromhex(row), numbers(v)) for q, m, bits, row, v in rows]


def matrix_rows() -> list[tuple[bytes, int, list[int], list[float]]]:
    row = r"^\| \d \| `([0-9a-f]+)` \| `([0-9a-f]{4})` \| `([-\d ]+)` \| `([-.\d ]+)` \|$"
    return [
        (bytes.fromhex(words), int(scale, 16), numbers(v), [float(w) for w in weights.split()])
        for words, scale, v, weights in re.findall(row, DOCUMENT, re.M)
    ]


def decode_word(word: int, q: int, multipliers: list[int]) -> list[int]:
    """Section 4, step by step, in Python integers."""
    index, rest = divmod(word, q**8)
    c = [rest // q**j % q for j in range(8)]
    y = [sum(c[j] * GENERATOR[j][i] for j in range(8)) for i in range(8)]
    n = [(y[i] + q) // (2 * q) for i in range(8)]
    r = [y[i] - 2 * q * n[i] for i in range(8)]
    w = [512 * r[i] + 2 ** (7 - i) for i in range(8)]
    a = [abs(x) for x in w]
    sign = [1 if x >= 0 else -1 for x in w]
    odd0, odd1 = sum(n) % 2, (sum(n) - sum(x < 0 for x in w)) % 2
    gap = 512 * 4 * q - sum(a) + 2 * odd1 * min(a) - 2 * odd0 * (512 * q - max(a))
    assert gap != 0 and len(set(a)) == 8
    if gap < 0:
        u = [r[i] - q * sign[i] for i in range(8)]
        at = a.index(min(a))
        u[at] += 2 * q * sign[at] * odd1
    else:
        u = list(r)
        at = a.index(max(a))
        u[at] -= 2 * q * sign[at] * odd0
    return [multipliers[index] * x for x in u]


def decode_row(row: bytes, blocks: int, q: int, multipliers: list[int], bits: int) -> list[int]:
    """Section 3: a row as one string of bits."""
    stream = int.from_bytes(row, "little")
    assert len(row) == -(-blocks * bits // 8) and stream >> (blocks * bits) == 0
    words = [stream >> (bits * j) & ((1 << bits) - 1) for j in range(blocks)]
    return [x for word in words for x in decode_word(word, q, multipliers)]


def splitmix(state: int) -> int:
    z = (state + 0x9E3779B97F4A7C15) & M64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & M64
    z = (z ^ z >> 27) * 0x94D049BB133111EB & M64
    return z ^ z >> 31


def rotation_of_16(seed: int) -> list[list[float]]:
    """rotation.md for n = 16: the Sylvester matrix over 4, times the signs."""
    bits = splitmix(splitmix(splitmix(seed) ^ 16))
    signs = [-1 if bits >> j & 1 else 1 for j in range(16)]
    return [[(-1) ** bin(i & j).count("1") * signs[j] / 4 for j in range(16)] for i in range(16)]


def bfloat16(bits: int) -> float:
    return float(struct.unpack("<f", struct.pack("<I", bits << 16))[0])


def test_the_document_has_its_vectors() -> None:
    assert len(GENERATOR) == 8 and all(len(row) == 8 for row in GENERATOR)
    assert [(code.q, code.word_bits, len(vectors)) for code, vectors in tables()] == [
        (13, 32, 6),
        (14, 33, 7),
        (3, 16, 6),
        (9, 28, 6),
        (197, 64, 6),
    ]
    assert len(packed_rows()) == 2 and len(matrix_rows()) == 2


@KERNELS
def test_words(kernels: Kernels) -> None:
    for code, vectors in tables():
        for word, v, tie in vectors:
            assert decode_word(word, code.q, list(code.multipliers)) == v, (code, hex(word))
            signed = word - (1 << 64) if word >> 63 else word
            packed = pack_words(torch.tensor([[signed]]), code.word_bits)
            assert kernels.unpack(packed, 8, code).tolist() == [v]
            assert lies_on_the_boundary(v, code, word) == tie
            assert max(abs(x) for x in v) <= code.limit
            u = torch.tensor([v], dtype=reference.entry_type(code))
            index = torch.tensor([[word // code.q**8]], dtype=torch.uint8)
            assert torch.equal(kernels.pack(u, index, code), packed)
        assert max(word for word, _, _ in vectors) == code.k * code.q**8 - 1


def lies_on_the_boundary(v: list[int], code: NestedCode, word: int) -> bool:
    """Whether some minimal vector e of the lattice (240, doubled: norm 8) has ⟨u, e⟩ = q·⟨e, e⟩/2."""
    u = [x // code.multipliers[word // code.q**8] for x in v]
    top = sorted((abs(x) for x in u), reverse=True)
    odd = sum(x < 0 for x in u) % 2
    return 2 * (top[0] + top[1]) == 4 * code.q or sum(top) - 2 * odd * top[-1] == 4 * code.q


@KERNELS
def test_rows(kernels: Kernels) -> None:
    for code, row, v in packed_rows():
        assert decode_row(row, 3, code.q, list(code.multipliers), code.word_bits) == v
        packed = torch.tensor([list(row)], dtype=torch.uint8)
        assert kernels.unpack(packed, 24, code).tolist() == [v]


def test_a_matrix_by_the_document() -> None:
    R = rotation_of_16(0)
    for row, scale, v, weights in matrix_rows():
        assert decode_row(row, 2, 13, [3, 4, 5, 6, 9], 32) == v
        found = [bfloat16(scale) * sum(v[i] * R[i][j] for i in range(16)) for j in range(16)]
        assert found == pytest.approx(weights, abs=6e-6)
        assert f"{bfloat16(scale)}" in DOCUMENT


def layer(coded: bool) -> NestedLinear:
    code = NestedCode(13, (3, 4, 5, 6, 9), 32)
    source = InputQuantizer(16, 0, ScaledCode(code, 0.9 / 26) if coded else None)
    linear = NestedLinear(16, 2, False, source, code, torch.float32)
    for number, (row, scale, _, _) in enumerate(matrix_rows()):
        linear.words[number] = torch.tensor(list(row), dtype=torch.uint8)
        linear.row_scale[number] = scale
    return linear


def test_a_matrix_by_the_module() -> None:
    rows = matrix_rows()
    linear = layer(coded=False)
    assert linear.decoded().tolist() == [v for _, _, v, _ in rows]
    weights = torch.tensor([weights for _, _, _, weights in rows])
    assert torch.allclose(linear.dequantized(), weights, atol=6e-6)
    x = torch.arange(1, 17).float()
    plain, coded = re.findall(r"output is ([−.\d]+) ([−.\d]+)\.\s", DOCUMENT)
    assert linear(x).tolist() == pytest.approx([float(y.replace("−", "-")) for y in plain], abs=1e-4)
    assert layer(coded=True)(x).tolist() == pytest.approx([float(y.replace("−", "-")) for y in coded], abs=1e-4)


def test_a_coded_activation() -> None:
    v, scale = re.findall(r"v = `([-\d ]+)`, s = ([.\d]+),", DOCUMENT)[0]
    x = [float(i) for i in range(1, 17)]
    y = [sum(a * b for a, b in zip(row, x, strict=True)) for row in rotation_of_16(0)]
    s = 0.9 / 26 * math.sqrt(sum(value * value for value in y) / 16)
    assert s == pytest.approx(float(scale), abs=6e-7)
    source = layer(coded=True).source
    assert source(torch.tensor([x])).values.tolist() == [numbers(v)]


def test_a_cached_head() -> None:
    row, scale, _, weights = matrix_rows()[0]
    stored = re.findall(r"words and `([0-9a-f]{4})`", DOCUMENT)[0]
    assert bytes.fromhex(stored) == scale.to_bytes(2, "little")
    packed = torch.tensor([list(row + bytes.fromhex(stored))], dtype=torch.uint8)
    assert packed.shape == (1, 10)
    code = ScaledCode(NestedCode(13, (3, 4, 5, 6, 9), 32), 1.0)
    assert unpack_heads(packed, 16, code, 0, torch.float32)[0].tolist() == pytest.approx(weights, abs=6e-6)


def test_a_cached_key_with_factors() -> None:
    row, scale, _, weights = matrix_rows()[0]
    text, key = re.findall(
        r"With the `factors` `(\S+)` the 10 bytes of section 9 stand for the key\n`([-.\d ]+)`", DOCUMENT
    )[0]
    characters = [chr(code) for code in range(ord("#"), ord("~") + 1) if chr(code) != "\\"]
    factors = [2 ** ((characters.index(character) - 45) / 10) for character in text]
    expected = [float(x) for x in key.split()]
    assert [w / f for w, f in zip(weights, factors, strict=True)] == pytest.approx(expected, abs=2e-4)
    packed = torch.tensor([list(row + scale.to_bytes(2, "little"))], dtype=torch.uint8)
    code = factored_from(ScaledCode(NestedCode(13, (3, 4, 5, 6, 9), 32), 1.0), [text])
    assert unpack_heads(packed, 16, code, 0, torch.float32)[0].tolist() == pytest.approx(expected, abs=6e-6)


def test_the_rotation_of_16_is_the_packages() -> None:
    assert torch.allclose(rotation(16, 0).apply(torch.eye(16)).t(), torch.tensor(rotation_of_16(0)), atol=1e-6)
