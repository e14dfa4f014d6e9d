"""Head vectors: the compiled loops compute what the reference does, with centers and without."""

import pytest
import torch
from torch import Tensor

from nestquant_cli.e8.code import NestedCode
from nestquant_cli.kernels.contract import Kernels
from nestquant_cli.kernels.device_kernels import of_family
from tests.families import gaussian, relative_error

CODE, UNIT, SEED = NestedCode(q=13, multipliers=(3, 4, 5, 6, 9), word_bits=32), 0.9 / 13 / 2, 3
REFERENCE, CPU = of_family("reference"), of_family("cpu")


def agreement(some: Tensor, others: Tensor) -> float:
    """The share of equal entries; sums in another order may round otherwise."""
    return float((some == others).float().mean())


@pytest.mark.parametrize("seed", [None, SEED])
@pytest.mark.parametrize("heads", [0, 1, 3])
def test_heads(heads: int, seed: int | None) -> None:
    """Packed by either, read by both to the same bits."""
    run, size = 20, 80
    centers = gaussian(heads, size, seed=1) if heads else None
    x = gaussian(2, max(1, heads), run, size) + (0 if centers is None else 2 * centers[:, None])
    rows = x.reshape(-1, size)
    fixed = CODE, UNIT, seed, True, centers, run
    packed, decoded = REFERENCE.encode_heads(rows, *fixed)
    other, other_decoded = CPU.encode_heads(rows, *fixed)
    assert agreement(packed, other) > 0.98
    assert decoded is not None and other_decoded is not None and relative_error(decoded, rows) < 0.1
    for kernels in (REFERENCE, CPU):
        for data, expected in ((packed, decoded), (other, other_decoded)):
            assert torch.equal(kernels.decode_heads(data, size, CODE, seed, centers, run), expected)
    assert (packed[:, -1] >= 128).float().mean() > 0.5 if heads else not (packed[:, -1] >= 128).any()


def test_attention_is_that_to_decoded_states() -> None:
    centers, shape = gaussian(2, 64, seed=1), (2, 2, 70)
    states = gaussian(*shape, 64) + centers[:, None], gaussian(*shape, 64, seed=2)
    keys = REFERENCE.encode_heads(states[0].view(-1, 64), CODE, UNIT, SEED, False, centers, 70)[0].view(*shape, -1)
    values = REFERENCE.encode_heads(states[1].view(-1, 64), CODE, UNIT, SEED, False)[0].view(*shape, -1)
    query, mask = gaussian(2, 2, 3, 64, seed=3), gaussian(2, 2, 3, 70, seed=4)
    mask[0, 0, 0] = -torch.inf
    arguments = query, (keys, CODE), (values, CODE, 64), SEED, mask, 0.3, centers
    logs = [torch.empty(arguments[0].shape[:3]) for _ in range(2)]
    found, other = (each.attend(*arguments, lse=lse) for each, lse in zip((REFERENCE, CPU), logs, strict=True))
    assert torch.allclose(*logs, atol=1e-5)
    assert found.shape == (2, 2, 3, 64) and relative_error(other, found) < 1e-5
    assert not found[0, 0, 0].any()


@pytest.mark.parametrize("kernels", [REFERENCE, CPU], ids=["reference", "cpu"])
@pytest.mark.parametrize("tokens", [5, 700])
def test_what_is_no_number_gives_none(kernels: Kernels, tokens: int) -> None:
    packed = kernels.encode_heads(gaussian(2 * tokens, 64), CODE, UNIT, SEED, False)[0].view(1, 2, tokens, -1)
    query, mask = gaussian(1, 2, 4, 64, seed=3), torch.zeros(1, 2, 4, tokens)
    query[0, 1, 2, 7] = torch.nan
    states = (packed, CODE), (packed, CODE, 64)
    in_pages = kernels.attend_pages(query, *states, torch.zeros(1, 1), torch.tensor([tokens]), SEED, 0.3)
    broken = torch.zeros(2, 4, dtype=torch.bool)
    broken[1, 2] = True
    for found in (in_pages, kernels.attend(query, *states, SEED, None, 0.3)):
        assert torch.equal(found[0].isnan(), broken[..., None].expand(-1, -1, 64))
    mask[0, 0, 0] = -torch.inf
    mask[0, 0, 1, tokens // 2] = torch.nan
    mask[0, 0, 2] = torch.where(torch.arange(tokens) == 1, torch.nan, -torch.inf)
    broken[0, 1:3] = True
    found = kernels.attend(query, *states, SEED, mask, 0.3)
    assert torch.equal(found[0].isnan(), broken[..., None].expand(-1, -1, 64)) and not found[0, 0, 0].any()
