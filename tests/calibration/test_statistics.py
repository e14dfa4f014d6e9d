"""The codes of keys and values that are fitted to what a layer's cache was given."""

import pytest
import torch

from nestquant_cli.calibration.kv_observer import Sample
from nestquant_cli.calibration.statistics import fit_cache
from nestquant_cli.codecs.nested.centered import CenteredCode
from nestquant_cli.codecs.nested.code import ScaledCode
from nestquant_cli.e8.shape import shape_for_bits
from tests.families import gaussian

SEED = 5


def test_cache_codes_follow_keys_and_values() -> None:
    """Sizes differ, yet codes are relative to each vector's root mean square; an outlier asks for larger scales."""
    keys, values = gaussian(2, 250, 16), 50 * gaussian(2, 250, 16, seed=1)
    nothing = torch.zeros(1, 2, 16, dtype=torch.float64)
    codes = fit_cache(Sample(keys, values, nothing), shape_for_bits(4), 0, SEED)
    assert isinstance(codes.keys, ScaledCode) and isinstance(codes.values, ScaledCode)
    assert codes.keys.code.k == codes.values.code.k == 5
    assert codes.keys.unit == pytest.approx(codes.values.unit, rel=0.5)
    assert fit_cache(Sample(keys, values, nothing), shape_for_bits(4), 0, SEED) == codes
    centered = fit_cache(Sample(keys + 3, values + 150, nothing), shape_for_bits(4), 0, SEED, centering=True)
    assert isinstance(centered.keys, CenteredCode) and isinstance(centered.values, ScaledCode)
