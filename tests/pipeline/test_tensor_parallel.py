"""Inputs in parts, for tensor parallel, from quantizing to the forward and all that is done with a checkpoint."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from nestquant_cli import NestQuantConfig
from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.checkpoint.inspect import inspect
from nestquant_cli.checkpoint.verify import verify
from nestquant_cli.codecs.row_scale import row_scale_of
from nestquant_cli.export.export import export
from nestquant_cli.models.source import resolve
from nestquant_cli.modules.attach import quantized_linears
from nestquant_cli.modules.linear import QuantizedLinear
from nestquant_cli.modules.resident import set_resident
from nestquant_cli.pipeline.quantize import calibrate
from nestquant_cli.pipeline.recipe import Recipe
from nestquant_cli.rotation.transform import rotation
from tests.expert_models import make_experts
from tests.families import gaussian, load, logits, make_model, pack, random_ids, relative_error, save_model
from tests.parallel.test_team import torchrun
from tests.pipeline.test_quantize_experts import same_bytes

BITS: dict[str, dict[str, Any]] = {
    "w4": {"weight_bits": 4.0, "act_bits": 16.0, "kv_bits": 16.0},
    "w4a8": {"weight_bits": 4.0, "act_bits": 8.0, "kv_bits": 16.0},
    "w4a4kv4": {},
    "integer": {"method": "integer", "act_code": {"group": 8}, "weight_code": {"group": 16}},
    "sequential": {"weight_bits": 4.0, "act_bits": 16.0, "kv_bits": 16.0, "sequential": True},
    "mixed": {"weight_bits": 3.5, "act_bits": 16.0, "kv_bits": 16.0, "allocation": "mixed"},
    "glvq": {"method": "glvq", "weight_code": {"group": 32}, "act_bits": 16.0, "kv_bits": 16.0},
    "unrotated": {"rotation": "none"},
}
OFTEN = ("w4a4kv4", "integer")


@pytest.fixture(scope="module")
def original(tiny_tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(make_model("llama"), tiny_tokenizer_folder, tmp_path_factory.mktemp("parts") / "model")


def layout_of(folder: Path) -> dict[str, Any]:
    layout: dict[str, Any] = json.loads((folder / "config.json").read_text())["quantization_config"]["layout"]
    return layout


def parts_added_up(linear: QuantizedLinear, x: Tensor) -> Tensor:
    """What processes that hold one part each would compute and add up, from the format's page alone."""
    source, V = linear.source, linear.decoded().float()
    total = torch.zeros(len(x), linear.out_features)
    for number, (tokens, columns) in enumerate(zip(x.chunk(source.parts, 1), V.chunk(source.parts, 1), strict=True)):
        y = rotation(tokens.shape[1], source.seed).apply(tokens)
        if source.code is not None:
            y = source.code.part(number, 1).round(y).dequantized()
        total += y @ columns.t()
    bias = torch.zeros(()) if linear.bias is None else linear.bias
    return total * row_scale_of(linear.row_scale) + bias


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind not in OFTEN)) for kind in BITS])
def test_quantized_in_parts(original: Path, tiny_text_file: Path, tmp_path: Path, kind: str) -> None:
    packed = pack(original, tiny_text_file, tmp_path / "packed", tensor_parallel=2, **BITS[kind])
    layout = layout_of(packed)
    names = [f"model.layers.{layer}.{name}" for layer in (0, 1) for name in ("self_attn.o_proj", "mlp.down_proj")]
    assert layout["format_version"] == 6 and layout["parts"] == dict.fromkeys(names, 2)
    report = verify(packed, str(original))
    assert not report.problems and report.matrices == 14
    assert len(inspect(packed).matrices) == 14
    ids, exact = random_ids(2, 24), logits(load(original), random_ids(2, 24))
    model = load(packed)
    found = relative_error(logits(model, ids), exact)
    assert found < 0.6  # 1.4 behind a rotation of its own that the weights do not have
    set_resident(model, "packed")
    assert relative_error(logits(model, ids), exact) == pytest.approx(found, rel=1e-2)


@pytest.mark.parametrize("kind", ["w4", "w4a8", "w4a4kv4"])
@pytest.mark.parametrize("form", ["packed", "int8"])
def test_a_forward_is_the_sum_over_the_parts(
    original: Path, tiny_text_file: Path, tmp_path: Path, kind: str, form: str
) -> None:
    model = load(pack(original, tiny_text_file, tmp_path / "packed", tensor_parallel=4, **BITS[kind]))
    set_resident(model, form)
    parted = [linear for linear in quantized_linears(model).values() if linear.source.parts > 1]
    assert len(parted) == 4
    for linear in parted:
        for tokens in (1, 3, 40):
            x = gaussian(tokens, linear.in_features)
            assert relative_error(linear(x), parts_added_up(linear, x)) < 1e-5


def test_a_calibration_in_parts(original: Path, tiny_text_file: Path, tmp_path: Path) -> None:
    text: dict[str, Any] = {"dataset": str(tiny_text_file), "samples": 4, "seqlen": 64}
    calibrate(resolve(str(original)), Recipe(**text, tensor_parallel=2), tmp_path / "stored", "cpu")
    stored: dict[str, Any] = {"calibration": tmp_path / "stored"}
    direct = pack(original, tiny_text_file, tmp_path / "direct", tensor_parallel=2)
    packed = pack(original, tiny_text_file, tmp_path / "packed", tensor_parallel=2, **stored)
    shards = [path.name for path in direct.glob("*.safetensors")]
    assert all((direct / name).read_bytes() == (packed / name).read_bytes() for name in shards)
    with pytest.raises(NestQuantError, match="calibrated with tensor_parallel 2, not 1"):
        pack(original, tiny_text_file, tmp_path / "other", **stored)
    grouped = BITS["integer"] | {"act_code": None, "act_bits": 16.0, "kv_bits": 16.0, "weight_code": {"group": 64}}
    with pytest.raises(NestQuantError, match="cannot be divided into 2 parts, each a multiple of 64"):
        pack(original, tiny_text_file, tmp_path / "other", tensor_parallel=2, **grouped, **stored)


def test_a_model_quantized_while_it_loads(original: Path) -> None:
    config = NestQuantConfig(bits=4, act_bits=4, tensor_parallel=2)
    model = AutoModelForCausalLM.from_pretrained(original, quantization_config=config)
    parts = {name.rpartition(".")[2]: linear.source.parts for name, linear in quantized_linears(model).items()}
    assert {name for name, count in parts.items() if count == 2} == {"o_proj", "down_proj"}
    ids = random_ids(2, 24)
    assert relative_error(logits(model, ids), logits(load(original), ids)) < 0.5


def test_experts_in_parts(tiny_tokenizer_folder: Path, tiny_text_file: Path, tmp_path: Path) -> None:
    original = save_model(make_experts("mixtral"), tiny_tokenizer_folder, tmp_path / "model")
    packed = pack(original, tiny_text_file, tmp_path / "packed", tensor_parallel=2)
    named = {name.partition(".expert_")[0].rpartition("layers.1.")[2] for name in layout_of(packed)["parts"]}
    assert {"mlp.experts.down_proj", "self_attn.o_proj"} <= named
    assert not verify(packed, str(original)).problems
    model, ids = load(packed), random_ids(2, 24)
    found = logits(model, ids)
    set_resident(model, "int8")
    assert relative_error(logits(model, ids), found) < 1e-3
    one = random_ids(1, 1)
    assert relative_error(logits(model, one), logits(load(packed), one)) < 1e-3


def test_what_cannot_be_in_parts_is_refused(original: Path, tiny_text_file: Path, tmp_path: Path) -> None:
    with pytest.raises(NestQuantError, match="use --tensor-parallel 2"):
        pack(original, tiny_text_file, tmp_path / "three", tensor_parallel=3)
    assert not (tmp_path / "three" / "config.json").exists()
    with pytest.raises(NestQuantError, match="a learned rotation mixes the parts"):
        Recipe(rotation="learned", tensor_parallel=2)
    settings = BITS["integer"] | {"act_bits": 16.0, "kv_bits": 16.0, "act_code": None}
    packed = pack(original, tiny_text_file, tmp_path / "packed", tensor_parallel=2, **settings)
    with pytest.raises(NestQuantError, match=r"rotated in parts.*quantize without --tensor-parallel"):
        export(packed, tmp_path / "exported")


@pytest.mark.slow
def test_two_processes_end_with_the_same_bytes(original: Path, tiny_text_file: Path, tmp_path: Path) -> None:
    single = pack(original, tiny_text_file, tmp_path / "single", tensor_parallel=2)
    text = ["--dataset", tiny_text_file, "--samples", 4, "--seqlen", 64, "--tensor-parallel", 2]
    torchrun("quantize", original, "--bits", 4, *text, "--output", tmp_path / "double")
    same_bytes(single, tmp_path / "double")
