import math

import pytest

from nestquant_cli.comparison.result import gap_closed, gap_error, layer_errors, reference_row
from nestquant_cli.evaluation.perplexity import Totals


def test_the_error_of_a_gap_forgets_what_windows_have_in_common() -> None:
    hard = [Totals(loss=10 * (level + 0.1), baseline_loss=10 * level) for level in (1.0, 2.0, 3.0)]
    assert gap_error(hard[:1], 10) is None
    found = gap_error(hard, 10)
    own, base = math.exp(2.1), math.exp(2.0)
    assert found == pytest.approx((own - base) / math.sqrt(3))  # each value is own·l − base·(l − 0.1), of deviation 1
    even = [Totals(loss=20.0, baseline_loss=18.0)] * 3
    assert gap_error(even, 10) == pytest.approx(0, abs=1e-12)


def test_gap_closed() -> None:
    assert gap_closed(1.0, 4.0) == 0.75 and gap_closed(5.0, 4.0) == -0.25
    assert gap_closed(1.0, None) is None and gap_closed(1.0, -1.0) is None


def test_the_reference_row_is_of_the_baseline() -> None:
    row = reference_row([Totals(loss=50.0, baseline_loss=20.0)], 10)
    assert row.perplexity == pytest.approx(math.exp(2)) and row.bits_per_weight is None and row.gap is None


def test_errors_of_layers() -> None:
    records = {
        f"model.layers.{layer}.{name}": {"hessian_error": layer + part}
        for layer in (0, 1)
        for name, part in (("q", 0.1), ("k", 0.3))
    }
    assert layer_errors(records) == pytest.approx([0.2, 1.2])
