"""Factors of channels, from quantizing to the forward and all that is done with a checkpoint."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.checkpoint.inspect import inspect
from nestquant_cli.checkpoint.verify import verify
from nestquant_cli.export.export import export
from nestquant_cli.models.source import resolve
from nestquant_cli.modules.attach import quantized_linears
from nestquant_cli.modules.resident import set_resident
from nestquant_cli.pipeline.quantize import calibrate
from nestquant_cli.pipeline.recipe import Recipe
from nestquant_cli.rotation.seeds import ScaledSeed, factors_of
from tests.expert_models import make_experts
from tests.families import gaussian, load, logits, make_model, pack, random_ids, relative_error, save_model

BITS: dict[str, dict[str, Any]] = {
    "w4a4kv4": {},
    "w4a8": {"weight_bits": 4.0, "act_bits": 8.0, "kv_bits": 16.0},
    "a4": {"weight_bits": 16.0, "act_bits": 4.0, "kv_bits": 16.0},
    "integer": {"method": "integer", "act_code": {"group": 8}, "weight_code": {"group": 16}},
    "learned": {"rotation": "learned", "reflections": 4},
    "parts": {"tensor_parallel": 2},
    "mixed": {"weight_bits": 3.5, "allocation": "mixed"},
}
OFTEN = ("w4a4kv4", "a4")
INPUTS = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")


@pytest.fixture(scope="module")
def original(tiny_tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose norms let some channels of an input be larger than others."""
    model = make_model("llama")
    with torch.no_grad():
        for number, (name, parameter) in enumerate(model.named_parameters()):
            if "layernorm" in name:
                parameter.mul_(torch.exp2(gaussian(len(parameter), seed=number)))
    return save_model(model, tiny_tokenizer_folder, tmp_path_factory.mktemp("factors") / "model")


def layout_of(folder: Path) -> dict[str, Any]:
    layout: dict[str, Any] = json.loads((folder / "config.json").read_text())["quantization_config"]["layout"]
    return layout


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind not in OFTEN)) for kind in BITS])
def test_quantized_with_factors(original: Path, tiny_text_file: Path, tmp_path: Path, kind: str) -> None:
    packed = pack(original, tiny_text_file, tmp_path / "packed", channel_scales=True, **BITS[kind])
    layout = layout_of(packed)
    factors = {name: factors_of(text) for name, text in layout["factors"].items()}
    assert layout["format_version"] == 7 and len(factors) == 8
    assert all(len(set(each)) > 2 for each in factors.values())
    assert not verify(packed, str(original)).problems
    inspect(packed)
    ids, exact = random_ids(2, 24), logits(load(original), random_ids(2, 24))
    model = load(packed)
    found = relative_error(logits(model, ids), exact)
    assert found < 0.6  # 1.4 where tokens and weights have factors that do not meet
    set_resident(model, "packed")
    assert relative_error(logits(model, ids), exact) == pytest.approx(found, rel=1e-2)
    for linear in quantized_linears(model).values():
        assert isinstance(linear.source.seed, ScaledSeed)
        x = gaussian(5, linear.in_features)
        expected = x @ linear.dequantized().t() + (0 if linear.bias is None else linear.bias)
        assert relative_error(linear(x), expected) < 0.2
    again = tmp_path / "again"
    model.save_pretrained(again)
    assert torch.equal(logits(load(again), ids), logits(load(packed), ids))


def test_factors_lower_the_error_of_every_output(original: Path, tiny_text_file: Path, tmp_path: Path) -> None:
    errors = []
    for scales in (False, True):
        packed = pack(original, tiny_text_file, tmp_path / str(scales), channel_scales=scales, kv_bits=16.0)
        errors.append(json.loads((packed / "quantization_report.json").read_text())["matrices"])
    before, after = ([record["hessian_error"] for record in each.values()] for each in errors)
    assert sum(after) < 0.9 * sum(before)
    assert "factors" not in layout_of(tmp_path / "False")


def test_only_inputs_that_are_rotated_and_rounded_have_factors(
    original: Path, tiny_text_file: Path, tmp_path: Path
) -> None:
    for number, bits in enumerate(({"act_bits": 16.0, "kv_bits": 16.0}, {"rotation": "none"})):
        packed = pack(original, tiny_text_file, tmp_path / str(number), channel_scales=True, **bits)
        assert "factors" not in layout_of(packed)


def test_a_stored_calibration_has_the_factors(original: Path, tiny_text_file: Path, tmp_path: Path) -> None:
    text: dict[str, Any] = {"dataset": str(tiny_text_file), "samples": 4, "seqlen": 64}
    calibrate(resolve(str(original)), Recipe(**text, channel_scales=True), tmp_path / "stored", "cpu")
    stored: dict[str, Any] = {"calibration": tmp_path / "stored"}
    direct = pack(original, tiny_text_file, tmp_path / "direct", channel_scales=True)
    packed = pack(original, tiny_text_file, tmp_path / "packed", channel_scales=True, **stored)
    assert layout_of(direct) == layout_of(packed)
    shards = [path.name for path in direct.glob("*.safetensors")]
    assert all((direct / name).read_bytes() == (packed / name).read_bytes() for name in shards)
    for other in ({}, {"channel_scales": True, "act_bits": 16.0}):
        with pytest.raises(NestQuantError, match="calibrated with channel_scales True, not False"):
            pack(original, tiny_text_file, tmp_path / "other", **stored, **other)


def test_experts_share_the_factors_of_their_input(
    tiny_tokenizer_folder: Path, tiny_text_file: Path, tmp_path: Path
) -> None:
    original = save_model(make_experts("mixtral"), tiny_tokenizer_folder, tmp_path / "model")
    packed = pack(original, tiny_text_file, tmp_path / "packed", channel_scales=True)
    layout = layout_of(packed)
    assert set(layout["factors"]) == {linear["input"] for linear in layout["linears"].values()}
    assert not verify(packed, str(original)).problems
    ids = random_ids(2, 24)
    assert relative_error(logits(load(packed), ids), logits(load(original), ids)) < 0.6


def test_a_format_without_factors_is_told(original: Path, tiny_text_file: Path, tmp_path: Path) -> None:
    integers: dict[str, Any] = {"method": "integer", "weight_bits": 8.0, "act_bits": 8.0, "kv_bits": 16.0}
    packed = pack(original, tiny_text_file, tmp_path / "packed", channel_scales=True, **integers)
    with pytest.raises(NestQuantError, match="factors of their channels"):
        export(packed, tmp_path / "exported")
