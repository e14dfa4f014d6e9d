"""The kernels in plain torch: slow, on any device, and the truth that the others are tested against."""

import torch
from torch import Tensor

from ...e8.code import BLOCK, NestedCode
from ...e8.nearest import nearest_point
from ...e8.voronoi import digits_of, gauge, point_of, reduce
from ...e8.words import join, pack_words, split, unpack_words, unsigned_quotient
from ..contract.constants import CLIP_STEPS

_WORDS = 1 << 20  # words whose multiplier indices are read at a time


def entry_type(code: NestedCode) -> torch.dtype:
    """The integer type of decoded entries."""
    return torch.int8 if code.int8 else torch.int16


def check_rows(x: Tensor, scale: Tensor) -> None:
    """Raises ValueError unless x is (rows, whole blocks) and scale (rows,)."""
    if x.dim() != 2 or x.shape[1] % BLOCK or scale.shape != x.shape[:1]:
        raise ValueError(f"rows {tuple(x.shape)} with scales {tuple(scale.shape)}: not whole blocks with a scale a row")


def quantize(x: Tensor, scale: Tensor, code: NestedCode) -> tuple[Tensor, Tensor, int]:
    """Rounds rows to the code (`contract.codes.quantize`): all multipliers in turn, the least error so far kept."""
    check_rows(x, scale)
    rows, entries = x.shape
    y = (x.float() / scale.float()[:, None]).reshape(-1, BLOCK)
    best = torch.full((y.shape[0],), torch.inf, device=x.device)
    u = torch.zeros(y.shape, dtype=torch.int32, device=x.device)
    index = torch.zeros(y.shape[0], dtype=torch.int32, device=x.device)
    for i, multiplier in enumerate(code.multipliers):
        point, error = round_under(y, multiplier, code)
        better = error < best
        best = torch.where(better, error, best)
        u = torch.where(better[:, None], point, u)
        index = torch.where(better, i, index)
    overloaded = torch.isinf(best)
    clipped = int(overloaded.sum())
    if clipped:
        index[overloaded] = code.k - 1
    m = torch.tensor(code.multipliers, dtype=torch.int32, device=x.device)[index]
    v = m[:, None] * u
    if clipped:
        v[overloaded] = clip(y[overloaded], code)
    return v.to(entry_type(code)).view(rows, entries), index.to(torch.uint8).view(rows, entries // BLOCK), clipped


def clip(y: Tensor, code: NestedCode) -> Tensor:
    """Codewords under the largest multiplier for blocks outside its reach: shrunk onto its boundary, then step by step.

    Args:
        y: (blocks, 8) float32, in units of v.
        code: the nested code.

    Returns:
        (blocks, 8) int32, m_k·u; zeros for a block with an entry that is not finite.
    """
    m = code.multipliers[-1]
    onto = onto_boundary(y, code)
    u = torch.zeros(y.shape, dtype=torch.int32, device=y.device)
    left = torch.ones(y.shape[0], dtype=torch.bool, device=y.device)
    for step in range(CLIP_STEPS):
        point, error = round_under(onto * (1 - step / CLIP_STEPS), m, code)
        fits = left & torch.isfinite(error)
        u = torch.where(fits[:, None], point, u)
        left &= ~fits
        if not left.any():
            break
    return m * u


def onto_boundary(y: Tensor, code: NestedCode) -> Tensor:
    """Blocks (blocks, 8) in units of v; those beyond the largest multiplier are divided down onto its boundary."""
    reach = gauge(y / (2 * code.multipliers[-1])) / code.q
    return y / torch.maximum(reach, y.abs().amax(-1) / code.limit).clamp(min=1)[:, None]


def pack(v: Tensor, index: Tensor, code: NestedCode) -> Tensor:
    """Packs integers and multiplier indices into words (`contract.codes.pack`)."""
    m = torch.tensor(code.multipliers, dtype=torch.int64, device=v.device)[index.long()]
    u = v.reshape(*index.shape, BLOCK).to(torch.int64) // m[..., None]
    return pack_words(join(digits_of(u, code.q), index, code.q), code.word_bits)


def unpack(packed: Tensor, entries: int, code: NestedCode) -> Tensor:
    """Decodes rows of words to integers (`contract.codes.unpack`)."""
    digits, index = split(unpack_words(packed, entries // BLOCK, code.word_bits), code.q)
    m = torch.tensor(code.multipliers, dtype=torch.int32, device=packed.device)[index.clamp(0, code.k - 1)]
    v = m[..., None] * point_of(digits, code.q)
    return v.to(entry_type(code)).view(packed.shape[0], entries)


def multiplier_indices(packed: Tensor, entries: int, code: NestedCode) -> Tensor:
    """Multiplier index of each block (rows, entries/8) uint8 from packed words: word div q⁸, eight divisions by q.

    2²⁰ words are taken apart at a time, as each is eight bytes meanwhile.
    """
    blocks = entries // BLOCK
    index = torch.zeros(packed.shape[0], blocks, dtype=torch.uint8, device=packed.device)
    step = max(1, _WORDS // max(1, blocks))
    for start in range(0, packed.shape[0], step):
        word = unpack_words(packed[start : start + step], blocks, code.word_bits)
        for _ in range(BLOCK):
            word = unsigned_quotient(word, code.q)
        index[start : start + step] = word.clamp(0, code.k - 1).to(torch.uint8)
    return index


def block_errors(x: Tensor, scales: Tensor, multipliers: Tensor, q: int, limit: int) -> Tensor:
    """Squared error of each block under each candidate (`contract.codes.block_errors`), one candidate at a time."""
    columns = []
    for scale, m in zip(scales.tolist(), multipliers.tolist(), strict=True):
        code = NestedCode(q=q, multipliers=(m,), word_bits=64, limit=limit)
        columns.append(round_under(x.float() / scale, m, code)[1] * scale**2)
    return torch.stack(columns, dim=1)


def round_under(y: Tensor, m: int, code: NestedCode, other: bool = False) -> tuple[Tensor, Tensor]:
    """Nearest point u (blocks, 8) int32 of y/m and the squared error of m·u, infinite where u is not a codeword.

    `other` as in `e8.nearest.nearest_point`.
    """
    u = nearest_point(y / (2 * m), other)
    valid = (reduce(u, code.q) == u).all(-1) & (m * u.abs().amax(-1) <= code.limit)
    error = (y - m * u).square().sum(-1)
    return u, torch.where(valid, error, torch.inf)
