"""Checkpoints of other methods are refused by name, from config.json, before any weight is read."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.integrations.transformers.quantizer import NestQuantConfig
from nestquant_cli.models.load import load_unpacked_model
from nestquant_cli.models.other_methods import method_of, refuse_quantized
from nestquant_cli.models.source import resolve
from nestquant_cli.pipeline.original_model import open_original
from nestquant_cli.pipeline.plan import make_plan
from nestquant_cli.pipeline.quantize import calibrate
from nestquant_cli.pipeline.recipe import Recipe
from nestquant_cli.storage.files import read_json, write_json
from tests.families import load

# What published checkpoints have in config.json, and how the method is called.
ENTRIES: dict[str, tuple[dict[str, Any], str]] = {
    "bitsandbytes": ({"quantization_config": {"load_in_4bit": True, "quant_method": "bitsandbytes"}}, "bitsandbytes"),
    "old bitsandbytes": ({"quantization_config": {"load_in_8bit": True}}, "bitsandbytes"),
    "gptq": ({"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}}, "GPTQ"),
    "awq": ({"quantization_config": {"quant_method": "awq", "bits": 4, "version": "gemm"}}, "AWQ"),
    "torchao": ({"quantization_config": {"quant_method": "torchao", "quant_type": {}}}, "torchao"),
    "compressed-tensors": (
        {"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"}},
        "compressed-tensors",
    ),
    "old compressed-tensors": ({"compression_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
    "modelopt": ({"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}}, "ModelOpt"),
    "exl2": ({"quantization_config": {"quant_method": "exl2", "bits": 4.0}}, "EXL2"),
    "hqq": ({"quantization_config": {"quant_method": "hqq", "quant_config": {}}}, "HQQ"),
    "quanto": ({"quantization_config": {"quant_method": "quanto", "weights": "int4"}}, "quanto"),
    "mlx": ({"quantization": {"bits": 4}, "quantization_config": {"bits": 4}}, "MLX"),
    "fp4 experts": ({"quantization_config": {"quant_method": "fp8", "expert_dtype": "fp4"}}, "FP8"),
    "fbgemm": ({"quantization_config": {"quant_method": "fbgemm_fp8"}}, "FBGEMM FP8"),
    "unnamed": ({"quantization_config": {"bits": 4}}, "a method that its config.json does not name"),
    "in a part": ({"text_config": {"quantization_config": {"quant_method": "gptq"}}}, "GPTQ"),
}
UNREAD = ["modelopt", "exl2", "mlx", "unnamed"]  # transformers has no reader for them


@pytest.fixture
def stored_by(tiny_model_folder: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A folder whose config.json is that of another method, without any weights."""

    def make(kind: str) -> Path:
        folder = Path(shutil.copytree(tiny_model_folder, tmp_path / "model"))
        write_json(folder / "config.json", read_json(folder / "config.json") | ENTRIES[kind][0])
        (folder / "model.safetensors").unlink()
        return folder

    return make


@pytest.mark.parametrize("kind", ENTRIES)
def test_other_methods_are_refused_by_name_before_weights_are_read(
    kind: str, stored_by: Callable[[str], Path], tmp_path: Path
) -> None:
    source, label = resolve(str(stored_by(kind))), ENTRIES[kind][1]
    for refusing in (
        lambda: refuse_quantized(source),
        lambda: make_plan(source, Recipe()),
        lambda: open_original(source, "cpu"),
        lambda: calibrate(source, Recipe(), tmp_path / "calibration", "cpu"),
    ):
        with pytest.raises(NestQuantError) as error:
            refusing()
        assert str(error.value) == (
            f"the weights of model are quantized already, by {label}; nothing was quantized; "
            "give the model that it was made from, with weights in 16 or 32 bits"
        )


@pytest.mark.parametrize("name", ["quantize_config.json", "hf_quant_config.json"])
def test_a_file_beside_config_json_says_it_too(name: str, tiny_model_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model_folder, tmp_path / "model"))
    write_json(folder / name, {"bits": 4})
    with pytest.raises(NestQuantError, match=r"are quantized already, by (GPTQ|ModelOpt)"):
        refuse_quantized(resolve(str(folder)))


def test_the_remedy_works(tiny_model_folder: Path) -> None:
    assert method_of(resolve(str(tiny_model_folder))) is None
    refuse_quantized(resolve(str(tiny_model_folder)))
    assert make_plan(resolve(str(tiny_model_folder)), Recipe()).weights > 0


@pytest.mark.parametrize("kind", UNREAD)
def test_what_transformers_has_no_reader_for_is_not_scored_with_random_numbers(
    kind: str, stored_by: Callable[[str], Path]
) -> None:
    with pytest.raises(NestQuantError, match=rf"stored by {ENTRIES[kind][1]}, which transformers does not read; no"):
        load_unpacked_model(resolve(str(stored_by(kind))))


@pytest.mark.parametrize("kind", ["gptq", "exl2"])
def test_a_quantization_while_loading_is_refused_as_well(kind: str, tiny_model_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model_folder, tmp_path / "model"))
    write_json(folder / "config.json", read_json(folder / "config.json") | ENTRIES[kind][0])
    with pytest.raises((NestQuantError, ValueError), match=r"quantized (already, by EXL2|with GPTQConfig)"):
        load(folder, quantization_config=NestQuantConfig(bits=4))
