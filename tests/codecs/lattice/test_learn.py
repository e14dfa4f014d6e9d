"""Learning: bits by salience, lattices that are better than where they started, and the codec as a whole."""

import pytest
import torch

from nestquant_cli.codecs.lattice import learn as glvq_learn
from nestquant_cli.codecs.lattice.code import LatticeCode
from nestquant_cli.codecs.lattice.learn import learn
from nestquant_cli.codecs.lattice.rounding import quantize_rows
from nestquant_cli.codecs.lattice.search import loss, search, triangle
from nestquant_cli.codecs.registry import decoded
from nestquant_cli.quantization.factors import Feedback
from tests.codecs.lattice.test_search import lower
from tests.families import gaussian


def test_salient_groups_get_bits() -> None:
    C = torch.diag(torch.cat([torch.full((32,), 0.1), torch.ones(32), torch.full((32,), 10.0)]))
    code, _ = learn(gaussian(64, 96), C, LatticeCode(2, 8, 32), 0, 1)
    assert code.group_bits == (1, 2, 3)
    even, _ = learn(gaussian(64, 96), torch.eye(96), LatticeCode(2, 8, 32), 0, 1)
    assert even.group_bits == (2, 2, 2)


@pytest.mark.parametrize(("bits", "total"), [(2.0, 12), (2.5, 15), (3.0, 18), (8.0, 48)])
def test_the_average_is_spent(bits: float, total: int) -> None:
    code, _ = learn(gaussian(16, 192), torch.eye(192), LatticeCode(bits, 8, 32), 0, 1)
    assert code.group_bits is not None and sum(code.group_bits) == total


def test_curves_follow_the_tails() -> None:
    heavy = gaussian(200, 64) ** 3
    curves = learn(torch.cat([gaussian(200, 64), heavy], 1), torch.eye(128), LatticeCode(4, 8, 64), 0, 1)[0].curves
    assert curves is not None and curves[1] > curves[0] > 0
    plain, _ = learn(heavy, torch.eye(64), LatticeCode(4, 8, 64, companding=False), 0, 1)
    assert plain.curves == (0,)


@pytest.mark.parametrize("shared", [False, True])
def test_learning_helps_on_correlated_columns(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    mix = torch.block_diag(*[torch.eye(8) + 0.4 * gaussian(8, 8, seed=5)] * 8)
    X, C = gaussian(250, 64) @ mix, lower(64)
    X = X / X.square().mean(1, keepdim=True).sqrt()
    shape = LatticeCode(2, 8, 32, shared)
    found = []
    for steps in (1, 6):
        monkeypatch.setattr(glvq_learn, "STEPS", steps)
        code, lattice = learn(X, C, shape, 0, 1)
        digits = search(X, triangle(C, lattice.float(), code), code, 1)
        found.append(loss(X, code.multiply(digits, lattice.float()), C))
    assert found[1] < 0.97 * found[0]


def test_a_stack_is_rounded_matrix_by_matrix() -> None:
    target, C, shape = gaussian(50, 48), lower(48), LatticeCode(3, 32, 32)
    target[7] = 0
    found = quantize_rows(Feedback(target, C, None, 0.0), [30, 20], shape, 0, 4)
    parts = found.values.split([30, 20])
    for tensors, code, values in zip(found.tensors, found.codes, parts, strict=True):
        assert {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()} == code.tensors(len(values), 48)
        torch.testing.assert_close(decoded(code, tensors, 48), values)
    assert parts[0][7].abs().max() < 1e-20
    alone = quantize_rows(Feedback(target[30:], C, None, 0.0), [20], shape, 0, 4)
    assert torch.equal(alone.values, parts[1])
    assert float((found.values - target).square().sum() / target.square().sum()) < 0.06
