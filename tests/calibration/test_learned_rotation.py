import torch
from torch import Tensor

from nestquant_cli.calibration.learned_rotation import learn_reflectors
from nestquant_cli.codecs.integer.code import IntegerCode
from nestquant_cli.codecs.registry import fit_vectors
from nestquant_cli.codecs.weights import Shape
from nestquant_cli.e8.shape import shape_for_bits
from nestquant_cli.rotation.reflections import Reflections
from nestquant_cli.rotation.transform import rotation
from tests.families import gaussian

FOUR = IntegerCode(4, clip=0.9)


def outlying(rows: int, seed: int) -> Tensor:
    """Vectors that have one large direction in common, which a Hadamard rotation does not spread evenly."""
    direction = gaussian(64, seed=99)
    return gaussian(rows, 64, seed=seed) + 3 * gaussian(rows, 1, seed=seed + 1) * direction


def error(rows: Tensor, shape: Shape) -> float:
    code = fit_vectors(rows, shape, 0)
    return float((rows - code.round(rows).dequantized()).square().sum() / rows.square().sum())


def test_learned_reflections_lower_the_error_of_tokens_and_weights_that_were_not_seen() -> None:
    turn = rotation(64, 0)
    tokens, weights = turn.apply(outlying(2000, 0)), turn.apply(gaussian(100, 64, seed=5))
    found = Reflections.of(learn_reflectors([(tokens, FOUR), (weights, IntegerCode(4))], 4, 0))
    fresh = turn.apply(outlying(500, 7))
    assert error(found.reflect(fresh), FOUR) < 0.9 * error(fresh, FOUR)


def test_learning_repeats_and_works_inside_inference_mode_for_a_lattice() -> None:
    tokens = outlying(300, 0)
    first = learn_reflectors([(tokens, shape_for_bits(4))], 3, 1)
    with torch.inference_mode():
        assert torch.equal(learn_reflectors([(tokens, shape_for_bits(4))], 3, 1), first)
    assert first.shape == (3, 64)


def test_what_does_not_help_is_not_used() -> None:
    """Entries that are all ±1 lose nothing under one bit more than they need; no rotation does better."""
    signs = gaussian(400, 32).sign()
    assert not learn_reflectors([(signs, IntegerCode(2, clip=1.0))], 2, 0).any()
    assert not learn_reflectors([(torch.zeros(10, 32), FOUR)], 2, 0).any()
