"""Grouped lattice codes: a vector of d entries is s·G·l(z), s its row's scale, G a d × d matrix that was learned.

z has b bits a coordinate, and l(z) are levels that follow a μ-law curve. Columns come in groups; each has its own b and
curve, and its own G unless the matrix has one for all. A G costs 16·d²/(rows·columns) bits a weight: of a group of 128
columns and 576 rows 0.014 at d = 8, but 0.22 at d = 32, so that small matrices share one there.
"""

import functools
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ...e8.code import BLOCK
from ...e8.digits import pack_digits, unpack_digits
from ...kernels import for_device
from ...kernels.contract.searches import LatticeGroup
from ..weights import TensorForms

DIMENSIONS = (8, 16, 32)
MIN_BITS, MAX_BITS = 2, 8
LARGEST_GROUP = 1 << 20
CURVES = (0.0, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0)  # μ by the number of a curve; 0 is a uniform grid
_QUANTILES = 4096  # of the Gaussian that levels are scaled for


@dataclass(frozen=True)
class LatticeCode:
    """Shape and code of weights in one.

    Attributes:
        bits: average bits of an entry, 2 to 8 in steps of 1/8.
        dimension: d, 8, 16 or 32; less where d does not divide the row.
        group: columns that share b, curve and G, a multiple of 32; the last group may be shorter.
        shared: whether one G serves all groups.
        companding: whether groups may have a curve.
        group_bits, curves: b and number of the curve of each group; None before a matrix is coded.

    Raises:
        ValueError: a field is out of range.
    """

    codec: ClassVar[str] = "glvq"
    int8: ClassVar[bool] = False

    bits: float
    dimension: int = 8
    group: int = 128
    shared: bool = False
    companding: bool = True
    group_bits: tuple[int, ...] | None = None
    curves: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if type(self.bits) not in (int, float) or not MIN_BITS <= self.bits <= MAX_BITS or self.bits * 8 % 1:
            raise ValueError(f"bits {self.bits!r} of a lattice code are not 2 to 8 in eighths")
        if self.dimension not in DIMENSIONS or type(self.dimension) is not int:
            raise ValueError(f"dimension {self.dimension!r} of a lattice is not 8, 16 or 32")
        if type(self.group) is not int or not 0 < self.group <= LARGEST_GROUP or self.group % DIMENSIONS[-1]:
            raise ValueError(f"group {self.group!r} is not a multiple of {DIMENSIONS[-1]} columns")
        for name in ("shared", "companding"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name} is {getattr(self, name)!r}, not true or false")

    @property
    def word_bits(self) -> int:
        """Bits of eight entries."""
        return round(BLOCK * self.bits)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without what is fitted."""
        names = ("bits", "dimension", "group", "shared", "companding")
        return {"codec": self.codec, **{name: getattr(self, name) for name in names}}

    @staticmethod
    def from_dict(value: dict[str, Any]) -> "LatticeCode":
        """The inverse of `to_dict`; raises ValueError for what is missing or out of range."""
        names = ("bits", "dimension", "group", "shared", "companding")
        return LatticeCode(*(value.get(name, 0) for name in names))

    # Groups.

    def fitted(self) -> dict[str, str]:
        """`groups` as config.json has them: a digit for each group."""
        assert self.group_bits is not None and self.curves is not None
        return {"bits": "".join(map(str, self.group_bits)), "curves": "".join(map(str, self.curves))}

    def with_groups(self, value: Any, entries: int) -> "LatticeCode":
        """The code of a matrix from what `fitted` gave; raises ValueError where it is none for rows of `entries`."""
        bits, curves = (value.get(name) if isinstance(value, dict) else None for name in ("bits", "curves"))
        count = len(self.groups(entries))
        for item, digits in ((bits, "12345678"), (curves, "01234567")):
            if not isinstance(item, str) or len(item) != count or set(item) - set(digits):
                raise ValueError(f"a matrix has not the bits and curves of {count} groups")
        made = replace(self, group_bits=tuple(map(int, str(bits))), curves=tuple(map(int, str(curves))))
        if made.used_bytes(entries) > self.row_bytes(entries):
            raise ValueError(f"the groups of a matrix take more than {self.bits:g} bits an entry")
        return made

    def groups(self, entries: int) -> list[slice]:
        """The groups of a row in order."""
        return [slice(start, min(start + self.group, entries)) for start in range(0, entries, self.group)]

    def dimension_of(self, entries: int) -> int:
        """d of a matrix with rows of `entries`."""
        return max(d for d in DIMENSIONS if d <= self.dimension and entries % d == 0)

    def row_bytes(self, entries: int) -> int:
        """Bytes of the digits of a row."""
        return int(self.bits * entries) // 8

    def used_bytes(self, entries: int) -> int:
        """Those of them that digits are in; the rest is zero."""
        assert self.group_bits is not None
        groups = zip(self.groups(entries), self.group_bits, strict=True)
        return sum((part.stop - part.start) * bits // 8 for part, bits in groups)

    # Matrices.

    def tensors(self, rows: int, entries: int) -> TensorForms:
        """The stored tensors of a matrix: digits, row scales as bits of bfloat16, and matrices G as bits of float16."""
        d = self.dimension_of(entries)
        return {
            "words": ((rows, self.row_bytes(entries)), torch.uint8),
            "row_scale": ((rows,), torch.int16),
            "lattice": ((1 if self.shared else len(self.groups(entries)), d, d), torch.int16),
        }

    def levels(self, device: torch.device) -> list[Tensor]:
        """The levels of each group, (2^b,) float32."""
        assert self.group_bits is not None and self.curves is not None
        pairs = zip(self.group_bits, self.curves, strict=True)
        return [levels(bits, curve)[0].to(device) for bits, curve in pairs]

    def tables(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Levels of all groups (groups, most) float32, filled up with zeros, and how many each has, on the CPU."""
        found = self.levels(device)
        counts = torch.tensor([len(table) for table in found])
        most = int(counts.max())
        return torch.stack([F.pad(table, (0, most - len(table))) for table in found]), counts

    def pack(self, digits: Tensor) -> Tensor:
        """Digits (rows, entries) uint8 to (rows, row_bytes) uint8, one group after the other."""
        assert self.group_bits is not None
        entries = digits.shape[1]
        parts = zip(self.groups(entries), self.group_bits, strict=True)
        packed = [pack_digits(digits[:, part].contiguous(), bits) for part, bits in parts]
        free = self.row_bytes(entries) - self.used_bytes(entries)
        return torch.cat([*packed, packed[0].new_zeros(len(digits), free)], dim=1)

    def unpack(self, words: Tensor, entries: int) -> Tensor:
        """The inverse of `pack`."""
        assert self.group_bits is not None
        start, parts = 0, []
        for part, bits in zip(self.groups(entries), self.group_bits, strict=True):
            width = part.stop - part.start
            stop = start + width * bits // 8
            parts.append(unpack_digits(words[:, start:stop].contiguous(), width, bits))
            start = stop
        return torch.cat(parts, dim=1)

    def decode(self, words: Tensor, lattice: Tensor, entries: int) -> Tensor:
        """G·l(z) (rows, entries) float32 of stored digits (rows, bytes) and matrices."""
        lattices = lattice.view(torch.float16).float()
        tables = self.tables(words.device)[0]
        kernels = for_device(words.device)
        return kernels.decode_lattices(words, entries, self._by_group(entries), tables, lattices)

    def _by_group(self, entries: int) -> list[LatticeGroup]:
        """The groups of a row as `decode_lattices` takes them."""
        assert self.group_bits is not None
        groups, byte = [], 0
        for part, bits in zip(self.groups(entries), self.group_bits, strict=True):
            width = part.stop - part.start
            groups.append((part.start, width, bits, byte))
            byte += width * bits // 8
        return groups

    def multiply(self, digits: Tensor, lattices: Tensor) -> Tensor:
        """G·l(z) (rows, entries) float32 of digits (rows, entries) and matrices (count, d, d) float32."""
        rows, entries = digits.shape
        parts = []
        for number, (part, table) in enumerate(zip(self.groups(entries), self.levels(digits.device), strict=True)):
            G = lattices[0 if self.shared else number]
            parts.append((table[digits[:, part].int()].view(rows, -1, len(G)) @ G.t()).view(rows, -1))
        return torch.cat(parts, dim=1)


@functools.lru_cache(maxsize=128)
def levels(bits: int, curve: int) -> tuple[Tensor, float]:
    """The 2^bits levels of a curve, scaled for the least squared error on a unit Gaussian, and that error.

    The levels are ±F((i + ½) / 2^(bits−1)), F(x) = ((1 + μ)^x − 1)/μ, times a number of twelve binary digits.
    """
    x = (torch.arange(1 << bits, dtype=torch.float64) + 0.5) / (1 << (bits - 1)) - 1
    mu = CURVES[curve]
    raw = x if mu == 0 else x.sign() * ((1 + mu) ** x.abs() - 1) / mu
    quantiles = (torch.arange(_QUANTILES, dtype=torch.float64) + 0.5) / _QUANTILES
    gauss = torch.special.ndtri(quantiles)
    edges, scale = (raw[1:] + raw[:-1]) / 2, 2.0
    for _ in range(100):  # Lloyd's algorithm for the scale alone
        nearest = raw[torch.bucketize(gauss, edges * scale)]
        scale = float((gauss * nearest).sum() / nearest.square().sum())
    scale = round(scale * 4096) / 4096
    error = (gauss - scale * raw[torch.bucketize(gauss, edges * scale)]).square().mean()
    return (raw * scale).float(), float(error)
