from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.calibration.input_collector import InputCollector
from nestquant_cli.calibration.statistics import InputStatistics
from nestquant_cli.codecs.integer.code import IntegerCode
from nestquant_cli.codecs.registry import decoded
from nestquant_cli.codecs.weights import Shape
from nestquant_cli.e8.shape import CodeShape, shape_for_bits
from nestquant_cli.quantization.layer import QuantizedMatrix, quantize_group, row_errors
from nestquant_cli.rotation.transform import rotation
from tests.families import gaussian, relative_error

SEED = 2
FOUR = shape_for_bits(4)


def linears(features: int) -> dict[str, Any]:
    result = {"q": nn.Linear(features, 24), "k": nn.Linear(features, 5), "other": nn.Linear(features, 3)}
    for number, linear in enumerate(result.values()):
        linear.weight.data = gaussian(*linear.weight.shape, seed=number)
    return result


def statistics(features: int, shape: CodeShape | None = None) -> InputStatistics:
    collector = InputCollector(features, 200, 0, torch.device("cpu"))
    mix = gaussian(features, features, seed=8) / features**0.5 + 0.5 * torch.eye(features)
    collector.add(gaussian(1, 400, features, seed=9) @ mix)
    return collector.finish(["q", "k"], shape, SEED, "here")


def packed(features: int, act: CodeShape | None = None, weight: CodeShape = FOUR) -> dict[str, QuantizedMatrix]:
    return quantize_group(linears(features), statistics(features, act), weight, SEED, 0.01, "layer")


def rotated_weight(matrix: QuantizedMatrix, n: int) -> Tensor:
    return decoded(matrix.code, matrix.tensors, n)


@pytest.mark.parametrize("features", [64, 20])
def test_words_decode_to_the_weight_and_the_record_says_how_nearly(features: int) -> None:
    n = features + -features % 8
    original, item = linears(features), statistics(features, FOUR)
    for name, matrix in packed(features, FOUR).items():
        W = rotation(n, SEED).apply(F.pad(original[name].weight.detach(), (0, n - features)))
        found = rotated_weight(matrix, n)
        record = matrix.record
        assert record["shape"] == list(original[name].weight.shape)
        assert record["relative_error"] == pytest.approx(relative_error(found, W) ** 2, rel=1e-3)
        H, J = item.hessian.double(), torch.diag(item.noise.double())
        delta, found, W = (found - W).double(), found.double(), W.double()
        error = (delta @ H @ delta.t() + found @ J @ found.t()).diagonal().sum()
        power = (W @ H @ W.t()).diagonal().sum()
        assert record["hessian_error"] == pytest.approx(float(error / power), rel=1e-3)
        assert record["hessian_error"] < 0.05
        assert sum(record["beta_histogram"]) == len(W) * n // 8
        assert 0 <= record["clipped_blocks"] <= len(W) * n // 80 and record["damping"] == 0.01
        assert record["beta"] == sorted(record["beta"]) and len(record["beta"]) == len(record["multipliers"])


def test_members_of_a_group_and_no_others_are_quantized_alike() -> None:
    result = packed(64)
    assert list(result) == ["q", "k"]
    assert result["q"].code == result["k"].code
    assert result["q"].tensors["words"].shape == (24, 32) and result["k"].tensors["words"].shape == (5, 32)
    assert result["q"].tensors["row_scale"].dtype == torch.int16


def test_more_bits_give_less_error() -> None:
    errors = [packed(64, weight=shape_for_bits(bits))["q"].record["hessian_error"] for bits in (2, 3, 4, 6, 8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-4


def test_a_matrix_of_zeros_stays_zero() -> None:
    modules = linears(16)
    for module in modules.values():
        nn.init.zeros_(module.weight)
    item = InputStatistics(("q",), torch.eye(16), torch.zeros(16), None)
    result = quantize_group(modules, item, FOUR, SEED, 0.01, "layer")["q"]
    assert not rotated_weight(result, 16).any()
    assert result.record["relative_error"] == 0


def test_rows_of_very_different_sizes_keep_their_own_scale() -> None:
    modules = linears(64)
    modules["q"].weight.data *= torch.logspace(-6, 6, 24)[:, None]
    found = rotated_weight(quantize_group(modules, statistics(64), FOUR, SEED, 0.01, "layer")["q"], 64)
    W = rotation(64, SEED).apply(modules["q"].weight.detach())
    per_row = (found - W).norm(dim=1) / W.norm(dim=1)
    assert float(per_row.max()) < 0.3


def test_clipped_blocks_are_counted_per_matrix() -> None:
    """A row that lies in a single rotated block is beyond every multiplier."""
    modules: dict[str, Any] = {"q": nn.Linear(1024, 1), "k": nn.Linear(1024, 1)}
    R = rotation(1024, SEED)
    spike = torch.zeros(1, 1024)
    spike[0, 0] = 1.0
    modules["q"].weight.data = R.inverse(spike)
    modules["k"].weight.data = R.inverse(torch.ones(1, 1024))  # every block well inside
    item = InputStatistics(("q", "k"), torch.eye(1024), torch.zeros(1024), None)
    result = quantize_group(modules, item, FOUR, SEED, 0.01, "layer")
    assert result["q"].record["clipped_blocks"] >= 1
    assert result["k"].record["clipped_blocks"] == 0


def test_row_errors_are_those_of_the_definition() -> None:
    item = statistics(16, FOUR)
    W, rounded = gaussian(3, 16), gaussian(3, 16, seed=1)
    delta, power, error, output = row_errors(W, rounded, item)
    torch.testing.assert_close(delta, (rounded - W).square().sum(1))
    torch.testing.assert_close(power, W.square().sum(1))
    H, noisy = item.hessian, item.hessian + torch.diag(item.noise)
    expected = [r @ noisy @ r - 2 * (r @ H @ w) + w @ H @ w for r, w in zip(rounded, W, strict=True)]
    torch.testing.assert_close(error, torch.stack(expected), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output, torch.stack([w @ H @ w for w in W]), rtol=1e-4, atol=1e-4)


def test_rows_beyond_the_range_are_named() -> None:
    modules = linears(16)
    modules["k"].weight.data[2] = 1e30
    with pytest.raises(NestQuantError, match=r"row 2 of layer\.k is too large"):
        quantize_group(modules, statistics(16), FOUR, SEED, 0.01, "layer")


def test_dead_inputs_are_counted_and_their_weights_rounded_as_others() -> None:
    collector = InputCollector(16, 200, 0, torch.device("cpu"))
    collector.add(gaussian(1, 400, 16) * (torch.arange(16) > 2))
    item = collector.finish(["q", "k"], None, SEED, "here")
    assert item.dead == 3
    for matrix in quantize_group(linears(16), item, FOUR, SEED, 0.01, "layer").values():
        assert matrix.record["dead_inputs"] == 3 and matrix.record["relative_error"] < 0.1


def test_gptq_is_ldlq_one_column_at_a_time() -> None:
    """Against GPTQ as its authors write it: round a column, spread its error by the Cholesky factor of the inverse."""
    item, modules = statistics(24), linears(24)
    code = IntegerCode(3, clip=0.8)
    result = quantize_group(modules, item, code, SEED, 0.01, "layer", aware=False)["q"]
    W = rotation(24, SEED).apply(modules["q"].weight.detach()).double()
    H = item.hessian.double()
    H += 0.01 * H.diagonal().mean() * torch.eye(24)
    W, H = W.flip(1), H.flip(0, 1)  # the authors begin with the first column
    scale, _ = code.grid(W.float(), 0.8)
    U = torch.linalg.cholesky(torch.linalg.inv(H), upper=True)
    rounded = torch.empty_like(W)
    for j in range(24):
        rounded[:, j] = (W[:, j] / scale[:, 0]).round().clamp(-4, 3) * scale[:, 0]
        W[:, j:] -= torch.outer((W[:, j] - rounded[:, j]) / U[j, j], U[j, j:])
    torch.testing.assert_close(rotated_weight(result, 24).double(), rounded.flip(1))


@pytest.mark.parametrize("code", [FOUR, IntegerCode(4), IntegerCode(3, symmetric=False, group=16)], ids=str)
def test_feedback_and_noise_awareness_each_pay(code: Shape) -> None:
    item = statistics(64, FOUR)

    def error(**settings: bool) -> float:
        return float(
            quantize_group(linears(64), item, code, SEED, 0.01, "layer", **settings)["q"].record["hessian_error"]
        )

    plain = error(feeding=False, aware=False)
    assert error(feeding=True, aware=False) < plain
    assert error(feeding=True, aware=True) < error(feeding=True, aware=False)


def test_without_rotation_weights_are_rounded_as_they_are() -> None:
    modules, code = linears(32), IntegerCode(4, clip=1.0)
    result = quantize_group(
        modules, statistics(32), code, SEED, 0.01, "layer", rotated=False, feeding=False, aware=False
    )
    assert torch.equal(rotated_weight(result["k"], 32), code.round(modules["k"].weight.detach()).dequantized())
    assert result["k"].record["damping"] == 0 and result["k"].record["code"] == code.to_dict()
