"""The columns of stored matrices, without vLLM."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nestquant_cli.codecs.integer.code import IntegerCode
from nestquant_cli.codecs.registry import codec_of, shape_of
from nestquant_cli.integrations.vllm.columns import bits_of, columns_of
from nestquant_cli.modules.layout import LinearLayout
from nestquant_cli.quantization.factors import Feedback
from tests.families import gaussian

ROWS, FEATURES, PARTS = 6, 96, 4


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(1, 40), st.integers(0, 2**30))
def test_bits_of_rows(start: int, count: int, seed: int) -> None:
    rows = torch.randint(0, 256, (3, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    bits = np.unpackbits(rows.numpy(), axis=1, bitorder="little")[:, start : start + count]
    assert torch.equal(bits_of(rows, start, count), torch.from_numpy(np.packbits(bits, axis=1, bitorder="little")))


@pytest.mark.parametrize(
    ("method", "bits", "code"),
    [
        ("nestquant", 4, None),
        ("nestquant", 4.125, None),
        ("nestquant", 3.625, None),
        ("nestquant", 6, None),
        ("integer", 4, None),
        ("integer", 3, {"group": 8}),
        ("integer", 3, {"group": 24, "symmetric": False}),
        ("integer", 5, {"symmetric": False}),
    ],
)
@pytest.mark.parametrize("processes", [2, 4])
def test_columns_decode_to_those_of_the_matrix(method: str, bits: float, code: Any, processes: int) -> None:
    W, shape = gaussian(ROWS, FEATURES), shape_of(method, bits, code, "weight")
    rounded = codec_of(shape).quantize(Feedback(W, None, None, 0.0), [ROWS], shape, 0, 1)
    linear = LinearLayout(FEATURES, ROWS, False, "x", rounded.codes[0])
    columns = columns_of(linear, PARTS, processes)
    assert columns is not None and columns.linear == replace(linear, in_features=FEATURES // processes)
    for rank, expected in enumerate(rounded.values.chunk(processes, 1)):
        own = columns.of(rounded.tensors[0], rank)
        forms = columns.linear.tensors()
        assert {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in own.items()} == forms
        assert torch.equal(codec_of(shape).decode(columns.linear.code, own, FEATURES // processes), expected)


def test_a_weight_in_16_bits() -> None:
    columns = columns_of(LinearLayout(FEATURES, ROWS, False, "x", None), 2, 2)
    weight = gaussian(ROWS, FEATURES)
    assert columns is not None and torch.equal(columns.of({"weight": weight}, 1)["weight"], weight[:, FEATURES // 2 :])


@pytest.mark.parametrize(
    ("code", "parts", "processes"),
    [
        (IntegerCode(4), 1, 2),
        (IntegerCode(4), 2, 4),
        (IntegerCode(4, group=32), 4, 4),
        (None, 3, 2),
    ],
)
def test_what_cannot_be_cut(code: IntegerCode | None, parts: int, processes: int) -> None:
    assert columns_of(LinearLayout(FEATURES, ROWS, False, "x", code), parts, processes) is None
