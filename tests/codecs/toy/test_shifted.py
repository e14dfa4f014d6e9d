"""A codec that the package does not know goes the whole way once it is in the registry: nothing else names a codec."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.checkpoint.inspect import inspect
from nestquant_cli.checkpoint.manifest import MANIFEST, describe_files, describe_tensors
from nestquant_cli.checkpoint.read import read_layout
from nestquant_cli.checkpoint.verify import verify
from nestquant_cli.codecs.registry import CODECS
from nestquant_cli.modules.attach import quantized_linears
from nestquant_cli.modules.parse_layout import parse_layout
from nestquant_cli.modules.resident import set_resident
from nestquant_cli.pipeline.recipe import Recipe
from nestquant_cli.pipeline.recipe_file import read_recipe
from nestquant_cli.storage.files import read_json, write_json
from tests.codecs.toy.shifted import ShiftedCode, ShiftedCodec, ShiftedLinear
from tests.families import Outcome, in_process, load, logits, pack, random_ids, relative_error

IDS = random_ids(2, 24)


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CODECS, "shifted", ShiftedCodec())
        yield


@pytest.fixture
def nestquant(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    return in_process(capfd, monkeypatch)


@pytest.fixture(scope="module")
def packed(tiny_model_folder: Path, tiny_text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = {"method": "shifted", "weight_bits": 6, "act_bits": 16, "kv_bits": 16}
    return pack(tiny_model_folder, tiny_text_file, tmp_path_factory.mktemp("toy") / "packed", **settings)


def test_a_recipe_asks_the_registry(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("method: shifted\nbits: 3\n")
    recipe = read_recipe(path, {})
    assert recipe.shape("weight") == ShiftedCode(3)
    assert recipe.shape("act") is recipe.shape("kv") is None, "it codes weights only"
    with pytest.raises(NestQuantError, match=r"from 2 to 7; .*use whole bits from 2 to 7"):
        Recipe(method="shifted", weight_bits=2.5, act_bits=16, kv_bits=16)
    with pytest.raises(NestQuantError, match="shifted codes weights only"):
        Recipe(method="shifted", kv_bits=16)
    with pytest.raises(NestQuantError, match="search over 2 paths"):
        Recipe(method="shifted", act_bits=16, kv_bits=16, paths=2)


def test_it_loads_and_generates_as_the_original_does(packed: Path, tiny_model_folder: Path) -> None:
    model, original = load(packed), load(tiny_model_folder)
    linears = quantized_linears(model)
    assert linears and {type(module) for module in linears.values()} == {ShiftedLinear}
    expected = logits(model, IDS)
    assert relative_error(expected, logits(original, IDS)) < 0.2
    for name, module in linears.items():
        weight = original.get_submodule(name).weight.detach()
        assert relative_error(module.dequantized(), weight) < 0.05
    tokens = model.generate(IDS, max_new_tokens=8, do_sample=False)
    assert tokens.shape == (2, 32)
    set_resident(model, "int8")
    assert torch.equal(logits(model, IDS), expected), "a codec without an int8 form stays packed"


def test_its_layout_comes_back_from_json(packed: Path) -> None:
    layout = read_layout(packed)
    assert {linear.code for linear in layout.linears.values()} == {ShiftedCode(6)}
    assert layout.version == ShiftedCodec.format_version
    assert parse_layout(layout.to_dict()) == layout


def test_every_byte_is_counted(packed: Path) -> None:
    found = inspect(packed)
    assert found.file_bytes == sum(path.stat().st_size for path in packed.iterdir())
    assert sum(part.bytes for part in found.parts) == found.file_bytes
    rows = sum(matrix.shape[0] for matrix in found.matrices)
    assert {part.name: part.bytes for part in found.parts}["offsets"] == 2 * rows
    assert {matrix.word_bits for matrix in found.matrices} == {48}


def test_it_verifies_and_damage_is_named(packed: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    report = verify(packed, str(tiny_model_folder))
    assert not report.problems and report.matrices and report.recomputed.keys() == report.recorded.keys()
    damaged = Path(shutil.copytree(packed, tmp_path / "damaged"))
    shard = damaged / "model-00001-of-00003.safetensors"
    tensors = load_file(shard)
    tensors["model.layers.0.mlp.up_proj.offset"][3] = 64
    save_file(tensors, shard, {"format": "pt"})
    manifest = read_json(damaged / MANIFEST)  # as one who knows the hashes would write it
    manifest["files"] |= describe_files(damaged, [shard.name])
    manifest["tensors"] |= describe_tensors(damaged, [shard.name])
    write_json(damaged / MANIFEST, manifest)
    assert any("the offset of row 3 is no digit" in str(problem) for problem in verify(damaged).problems)


def test_the_command_line_inspects_it(packed: Path, nestquant: Callable[..., Outcome]) -> None:
    code, out, _ = nestquant("inspect", packed, "--matrices")
    assert code == 0 and "6-bit shifted integers" in out


def test_the_command_line_quantizes_and_exports_it(
    tiny_model_folder: Path, tiny_text_file: Path, tmp_path: Path, nestquant: Callable[..., Outcome]
) -> None:
    plain, recipe = tmp_path / "plain", ["--method", "shifted", "--bits", 6, "--rotation", "none"]
    windows = ["--dataset", tiny_text_file, "--samples", 4, "--seqlen", 64]
    assert nestquant("quantize", tiny_model_folder, *recipe, *windows, "--output", plain)[0] == 0
    code, out, _ = nestquant("export", plain, "--output", tmp_path / "export")
    assert code == 0 and "matrices of 8-bit integers" in out
    exported = load(tmp_path / "export", dtype=torch.float32)
    assert relative_error(logits(exported, IDS), logits(load(plain, dtype=torch.float32), IDS)) < 1e-5
