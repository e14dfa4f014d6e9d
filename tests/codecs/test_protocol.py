"""What every codec in the registry owes to those that ask it, on one small matrix of each."""

import json
from typing import Any

import pytest
import torch

from nestquant_cli.base.fields import Fields
from nestquant_cli.codecs.integer.code import IntegerCode
from nestquant_cli.codecs.lattice.code import LatticeCode
from nestquant_cli.codecs.protocol import Codec, Grid, NoGridError, VectorCodec
from nestquant_cli.codecs.registry import CODECS, codec_of, shape_from, shape_of, vector_codec, weights_only
from nestquant_cli.codecs.weights import RoundedRows, Shape
from nestquant_cli.e8.shape import shape_for_bits
from nestquant_cli.quantization.factors import feedback
from tests.families import gaussian, relative_error

ENTRIES, ROWS = 72, [6, 4]
SHAPES: list[Any] = [
    shape_for_bits(3),
    shape_for_bits(6),
    IntegerCode(4),
    IntegerCode(3, symmetric=False, group=24),
    LatticeCode(2.5, 8, 32),
]


def quantized(shape: Shape, paths: int = 4) -> tuple[Codec[Any, Any], RoundedRows]:
    codec, x = codec_of(shape), gaussian(200, ENTRIES, seed=1)
    hessian, noise = x.t() @ x / len(x), torch.zeros(ENTRIES)
    step = feedback(gaussian(sum(ROWS), ENTRIES), hessian, noise, 0.01, "here", codec.columns)
    return codec, codec.quantize(step, ROWS, shape, 0, paths)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_matrix_goes_to_its_tensors_and_back(shape: Any) -> None:
    codec, rounded = quantized(shape)
    assert relative_error(rounded.values, gaussian(sum(ROWS), ENTRIES)) < 0.5
    matrices = zip(ROWS, rounded.tensors, rounded.codes, rounded.records, rounded.values.split(ROWS), strict=True)
    for rows, tensors, code, record, values in matrices:
        assert {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()} == shape.tensors(rows, ENTRIES)
        assert code.tensors(rows, ENTRIES) == shape.tensors(rows, ENTRIES) and codec.shape_of(code) == shape
        assert tensors.keys() <= codec.tensor_kinds.keys()
        torch.testing.assert_close(codec.decode(code, tensors, ENTRIES), values)
        checked = codec.check(code, {name: tensor.numpy() for name, tensor in tensors.items()}, ENTRIES)
        assert checked.words == rows * ENTRIES // 8
        assert not any(checked.problems.values()) and checked.problems.keys() <= tensors.keys()
        assert codec.check_record(code, record, checked) is None
        assert codec.check_record(code, {}, checked)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes_and_codes_come_back_from_json(shape: Any) -> None:
    codec, rounded = quantized(shape)
    assert shape_from(json.loads(json.dumps(shape.to_dict()))) == shape
    described = json.loads(json.dumps(codec.code_to_dict(rounded.codes[0], shape)))
    assert codec.code_from(Fields(described, "linears"), shape, ENTRIES) == rounded.codes[0]
    assert json.dumps(codec.summary(rounded.codes[0])) and codec.describe(rounded.codes[0])


def test_a_nested_code_of_another_shape_keeps_the_room_that_its_fit_had() -> None:
    layout, shape = shape_for_bits(4), shape_for_bits(3)
    few = shape.with_multipliers((3,))
    codec = codec_of(few)
    described = codec.code_to_dict(few, layout)
    assert described == {"multipliers": [3], "code": shape.to_dict()}
    again = codec.code_from(Fields(described, "linears"), layout, ENTRIES)
    assert again == few and codec.shape_of(again) == shape and shape.k > 1
    assert codec.code_to_dict(few, shape) == {"multipliers": [3]}


def test_integers_for_other_formats() -> None:
    for shape, expected in ((SHAPES[0], Grid(8, None)), (SHAPES[2], Grid(4, None))):
        codec, rounded = quantized(shape)
        assert codec.grid(rounded.codes[0], ENTRIES, "it") == expected
        v = codec.integers(rounded.codes[0], rounded.tensors[0], ENTRIES)
        assert v.dtype == torch.int8 and int(v.abs().max()) <= 1 << (expected.bits - 1)
    for shape, cause in ((SHAPES[1], "it has entries beyond int8"), (SHAPES[4], "it has no integers")):
        codec, rounded = quantized(shape)
        with pytest.raises(NoGridError, match=cause) as caught:
            codec.grid(rounded.codes[0], ENTRIES, "it")
        assert "quantize with" in caught.value.remedy


def test_what_takes_as_long_as_rounding_leaves_out_what_is_done_once() -> None:
    for shape in SHAPES:
        codec_of(shape).trial(gaussian(64, 64), shape, 4)()


def test_codecs_of_weights_alone() -> None:
    assert {name for name in CODECS if weights_only(name)} == {"glvq"}
    assert isinstance(vector_codec("nestquant"), VectorCodec)
    with pytest.raises(ValueError, match="glvq codes weights only"):
        shape_of("glvq", 2, None, "act")
    with pytest.raises(ValueError, match="there is no codec 'other'"):
        shape_from({"codec": "other"})
