import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.checkpoint.byte_counts import QUANTIZED
from nestquant_cli.checkpoint.inspect import inspect
from nestquant_cli.checkpoint.manifest import REPORT
from nestquant_cli.models.source import resolve
from nestquant_cli.pipeline.quantize import quantize
from nestquant_cli.pipeline.recipe import Recipe

FIRST = "model-00001-of-00003.safetensors"


def tensor_bytes(folder: Path, leaf: str) -> int:
    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            total += sum(file.get_tensor(name).nbytes for name in file.keys() if name.endswith(leaf))  # noqa: SIM118
    return total


def test_the_parts_add_up_to_the_files(tiny_checkpoint: Path) -> None:
    found = inspect(tiny_checkpoint)
    on_disk = sum(path.stat().st_size for path in tiny_checkpoint.iterdir())
    assert found.file_bytes == on_disk == sum(part.bytes for part in found.parts)


def test_bits_count_everything_of_the_quantized_layers(tiny_checkpoint: Path) -> None:
    found = inspect(tiny_checkpoint)
    parts = {part.name: part.bytes for part in found.parts if part.group == QUANTIZED}
    assert parts["words"] == tensor_bytes(tiny_checkpoint, ".words") == found.quantized_weights // 2
    assert parts["row scales"] == tensor_bytes(tiny_checkpoint, ".row_scale")
    assert found.quantized_weights == 2 * (64 * 64 * 2 + 64 * 32 * 2 + 64 * 128 * 3)
    assert found.bits_per_weight == 8 * sum(parts.values()) / found.quantized_weights
    headers = [int.from_bytes((tiny_checkpoint / FIRST).read_bytes()[:8], "little") + 8 for _ in range(2)]
    assert 0.8 * sum(headers) < parts["safetensors headers"] < sum(headers)  # the rest describes norms


def test_code_parameters_are_the_bytes_of_the_layout_in_config_json(tiny_checkpoint: Path) -> None:
    text = (tiny_checkpoint / "config.json").read_text()
    match = re.search(r',\n    "layout": \{.*\n    \}(?=\n  \})', text, re.DOTALL)
    assert match
    parts = {part.name: part.bytes for part in inspect(tiny_checkpoint).parts}
    assert parts["code parameters in config.json"] == len(match[0])
    assert parts["code parameters in config.json"] + parts["rest of config.json"] == len(text)


def test_layers_and_matrices(tiny_checkpoint: Path) -> None:
    found = inspect(tiny_checkpoint)
    assert list(found.layers()) == ["model.layers.0", "model.layers.1"]
    assert all(len(matrices) == 7 for matrices in found.layers().values())
    for matrix in found.matrices:
        assert matrix.bits_per_weight == 4 + 16 / matrix.shape[1]
        assert (matrix.code["q"], matrix.word_bits) == (13, 32) and len(matrix.code["multipliers"]) <= 5
    assert found.entropy_bits is not None and 3.7 < found.entropy_bits < 4


def test_json_has_the_fixed_keys(tiny_checkpoint: Path) -> None:
    value = json.loads(json.dumps(inspect(tiny_checkpoint).as_json(), allow_nan=False))
    assert {"bits_per_weight", "quantized_weights", "file_bytes", "layers", "parts", "recipe"} <= set(value)
    assert sum(layer["quantized_weights"] for layer in value["layers"]) == value["quantized_weights"]
    assert value["recipe"]["weight_bits"] == 4.0


def test_a_file_of_the_user_counts_as_other(copy: Path) -> None:
    before = inspect(copy)
    (copy / "README.md").write_bytes(b"x" * 1000)
    after = inspect(copy)
    assert after.file_bytes == before.file_bytes + 1000
    assert after.bits_per_weight == before.bits_per_weight


def test_without_quantized_weights_there_are_no_bits(
    tmp_path: Path, tiny_model_folder: Path, tiny_text_file: Path
) -> None:
    recipe = Recipe(weight_bits=16, act_bits=16, kv_bits=3, dataset=str(tiny_text_file), samples=1, seqlen=32)
    quantize(resolve(str(tiny_model_folder)), recipe, tmp_path / "kv", "cpu")
    found = inspect(tmp_path / "kv")
    assert (found.bits_per_weight, found.quantized_weights, found.entropy_bits) == (None, 0, None)
    assert found.file_bytes == sum(path.stat().st_size for path in (tmp_path / "kv").iterdir())


def test_a_report_without_histograms_leaves_the_entropy_out(copy: Path, rewrite: Callable[[str, Any], None]) -> None:
    rewrite(REPORT, {"matrices": []})
    assert inspect(copy).entropy_bits is None


def test_damage_is_one_error(copy: Path, tiny_model_folder: Path) -> None:
    with pytest.raises(NestQuantError, match="is not a packed checkpoint"):
        inspect(tiny_model_folder)
    content = (copy / FIRST).read_bytes()
    (copy / FIRST).write_bytes(content[:-100])
    with pytest.raises(NestQuantError, match=f"{FIRST} is truncated"):
        inspect(copy)
    (copy / FIRST).unlink()
    with pytest.raises(NestQuantError, match=f"{FIRST} cannot be read"):
        inspect(copy)
    (copy / FIRST).write_bytes(content)
    (copy / "config.json").unlink()
    with pytest.raises(NestQuantError, match="incomplete"):
        inspect(copy)


def test_tensors_that_do_not_fit_config_json_are_refused(copy: Path, rewrite: Callable[[str, Any], None]) -> None:
    name = "model.layers.0.mlp.down_proj"
    rewrite("config.json", lambda c: c["quantization_config"]["layout"]["linears"][name].update(in_features=72))
    with pytest.raises(NestQuantError, match=f"{name}.words"):
        inspect(copy)
