"""Rows of tokens to tiles and back, for all widths and numbers of rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestquant_cli.kernels.cpu.square import SIDE
from nestquant_cli.kernels.cpu.tile_rows import load_rows, store_rows


def rounded(x: np.ndarray) -> np.ndarray:
    """The bits of bfloat16 of float32, ties to even."""
    bits = x.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)).astype(np.uint16)


@pytest.mark.parametrize("narrow", [False, True])
@given(features=st.integers(1, 70), padding=st.integers(0, 9), count=st.integers(1, SIDE))
@settings(max_examples=30, deadline=None)
def test_tiles_are_rows_in_lanes(narrow: bool, features: int, padding: int, count: int) -> None:
    order = features + padding
    random = np.random.default_rng(features)
    values = random.standard_normal((count, features)).astype(np.float32)
    x = rounded(values) if narrow else values
    meant = (x.astype(np.uint32) << 16).view(np.float32) if narrow else x
    scale = random.standard_normal(order).astype(np.float32)
    places = np.array([x[min(lane, count - 1)].ctypes.data for lane in range(SIDE)])
    tile = np.full(order * SIDE, np.nan, np.float32)
    load_rows(places, narrow, scale, tile, features)
    lanes = tile.reshape(order, SIDE)
    assert np.array_equal(lanes[:features, :count].T, meant * scale[:features]) and not lanes[features:].any()
    out = np.zeros((count + 1, order), np.uint16 if narrow else np.float32)
    targets = np.array([out[min(lane, count - 1)].ctypes.data for lane in range(SIDE)])
    store_rows(tile, targets, count, narrow, order)
    expected = lanes.T[:count].copy()
    assert (out[:count] == (rounded(expected) if narrow else expected)).all() and not out[count].any()
