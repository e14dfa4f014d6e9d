"""A checkpoint with a quantized embedding and head, from quantizing to every command that reads one."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.checkpoint.inspect import inspect
from nestquant_cli.checkpoint.kernel_choice import kernel_choice
from nestquant_cli.checkpoint.read import read_layout
from nestquant_cli.checkpoint.verify import verify
from nestquant_cli.evaluation.perplexity import score
from nestquant_cli.export.export import export
from nestquant_cli.models.shards import read_tensors
from nestquant_cli.models.source import resolve
from nestquant_cli.models.vocabulary import known_tokens
from nestquant_cli.modules.layout import Layout
from nestquant_cli.modules.parse_layout import parse_layout
from nestquant_cli.pipeline.plan import make_plan
from nestquant_cli.pipeline.recipe import Recipe
from nestquant_cli.storage.files import read_json
from nestquant_cli.tuning.held_out import TuneText
from nestquant_cli.tuning.settings import TuneSettings
from nestquant_cli.tuning.tune import tune
from tests.families import load, logits, make_model, pack, random_ids, relative_error, save_model

TIED, UNTIED = "gemma3", "llama"
BITS = {"weight_bits": 4, "act_bits": 16, "kv_bits": 16, "feedback": "none"}


@pytest.fixture(scope="module", params=[(TIED, 8, 8), (UNTIED, 6, 8)], ids=["tied", "untied"])
def made(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_tokenizer_folder: Path,
    tiny_text_file: Path,
) -> tuple[Path, Path, Recipe]:
    """A model, its checkpoint and the recipe."""
    family, embedding, head = request.param
    base = tmp_path_factory.mktemp("tables")
    model = save_model(make_model(family), tiny_tokenizer_folder, base / "model")
    settings: dict[str, Any] = BITS | {"embedding_bits": embedding, "head_bits": head}
    recipe = Recipe(dataset=str(tiny_text_file), samples=4, seqlen=64, **settings)
    return model, pack(model, tiny_text_file, base / "packed", **settings), recipe


def test_it_answers_as_the_model(made: tuple[Path, Path, Recipe]) -> None:
    ids = random_ids(2, 16)
    assert relative_error(logits(load(made[1]), ids), logits(load(made[0]), ids)) < 0.35


def test_its_tokens_are_counted_and_it_is_scored_against_the_original(made: tuple[Path, Path, Recipe]) -> None:
    model, original, windows = load(made[1]), load(made[0]), random_ids(2, 16)
    assert known_tokens(model) == known_tokens(original) > 0
    scores = score(model, windows, baseline_model=original, progress=False)
    assert scores.kl_divergence is not None and 0 < scores.kl_divergence < 0.5


def test_verify_finds_nothing_wrong_and_every_altered_byte(made: tuple[Path, Path, Recipe], tmp_path: Path) -> None:
    report = verify(made[1], original=str(made[0]))
    assert not report.problems
    tables = read_layout(made[1]).tables
    assert tables.keys() <= report.recomputed.keys()
    for name in tables:
        recorded = read_json(made[1] / "quantization_report.json")["matrices"][name]["relative_error"]
        assert report.recomputed[name] == pytest.approx(recorded, rel=1e-4)
        assert recorded < 1e-3


def test_inspect_and_the_plan_count_the_same_bytes(made: tuple[Path, Path, Recipe]) -> None:
    model, packed, recipe = made
    found, plan = inspect(packed), make_plan(resolve(str(model)), recipe)
    parameters = sum(
        parameter.numel()
        for parameter in make_model(read_json(model / "config.json")["model_type"].removesuffix("_text")).parameters()
    )
    assert found.parameters == parameters == plan.parameters
    tensors = sum(tensor.nbytes for file in packed.glob("*.safetensors") for tensor in read_tensors(file).values())
    assert plan.file_bytes == tensors
    of_tables = sum(part.bytes for part in found.parts if part.group == "quantized embedding and head")
    assert sum(row.bytes for row in plan.tables) <= of_tables < 1.1 * sum(row.bytes for row in plan.tables) + 2000
    assert found.bits_per_parameter < 16
    assert not any(part.name in ("embeddings", "output head") for part in found.parts)
    assert sum(product.matrices for product in kernel_choice(packed, "cpu").products) > 0


def test_the_layout_survives_json_and_damage_is_refused(made: tuple[Path, Path, Recipe]) -> None:
    layout = read_layout(made[1])
    value = layout.to_dict()
    assert value["format_version"] == 7 and parse_layout(value) == layout
    assert dataclasses.replace(layout, tables={}).to_dict().get("tables") is None
    name = next(iter(layout.tables))
    for change in (
        {"rows": 0},
        {"columns": True},
        {"embedding": 1},
        {"head": 3},
        {"head": name},
        {"code": None},
        {"code": {"codec": "glvq"}},
        {"code": {"codec": "integer", "bits": 8, "symmetric": True, "group": 32, "clip": None}},
        {"code": {"codec": "integer", "bits": 8, "symmetric": False, "group": None, "clip": None}},
    ):
        damaged = value | {"tables": value["tables"] | {name: value["tables"][name] | change}}
        with pytest.raises(NestQuantError, match=r"config\.json is not usable"):
            parse_layout(damaged)


def test_a_misfit_is_refused(made: tuple[Path, Path, Recipe]) -> None:
    from nestquant_cli.modules.attach_tables import attach_tables

    layout = read_layout(made[1])
    for name, table in layout.tables.items():
        wrong = Layout(None, None, None, 0, tables={name: dataclasses.replace(table, rows=table.rows + 1)})
        with pytest.raises(NestQuantError, match=f"{name} of shape"):
            attach_tables(load(made[0]), wrong)


def test_an_interrupted_run_is_resumed_with_its_tables(
    made: tuple[Path, Path, Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_text_file: Path
) -> None:
    from nestquant_cli.checkpoint.output import Output

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    settings = BITS | {"embedding_bits": made[2].embedding_bits, "head_bits": made[2].head_bits}
    with monkeypatch.context() as patch:
        patch.setattr(Output, "finish", stop)
        with pytest.raises(KeyboardInterrupt):
            pack(made[0], tiny_text_file, tmp_path / "packed", **settings)
    monkeypatch.setattr("nestquant_cli.pipeline.finish.quantize_tables", stop)
    pack(made[0], tiny_text_file, tmp_path / "packed", **settings)
    for file in (*sorted(made[1].glob("*.safetensors")), made[1] / "config.json"):
        assert file.read_bytes() == (tmp_path / "packed" / file.name).read_bytes()


def test_an_export_has_the_tables_in_16_bits(made: tuple[Path, Path, Recipe], tmp_path: Path) -> None:
    exported = export(made[1], tmp_path / "export")
    tables, packed = read_layout(made[1]).tables, load(made[1])
    assert set(tables) <= set(exported.left_out)
    stored = {
        name: tensor
        for file in (tmp_path / "export").glob("*.safetensors")
        for name, tensor in read_tensors(file).items()
    }
    ids = torch.arange(tables[next(iter(tables))].rows)
    embedding = packed.get_input_embeddings()
    for name in tables:
        weight = stored[f"{name}.weight"]
        if tables[name].embedding:
            assert torch.equal(weight, embedding.look_up(ids).to(weight.dtype))
        else:
            assert np.allclose(weight, packed.get_submodule(name).dequantized(), atol=1e-6)


def test_a_checkpoint_without_tables_says_nothing_of_them(tiny_text_file: Path) -> None:
    recipe = Recipe(dataset=str(tiny_text_file))
    assert not any("embedding" in name or "head" in name for name in recipe.to_dict())
    assert (
        recipe.tag() == "w4a4kv4"
        and dataclasses.replace(recipe, embedding_bits=8, head_bits=5.5).tag() == "w4a4kv4e8h5.5"
    )
    for bits in (3, 8.5, 5.06, True, "8", float("nan")):
        with pytest.raises(NestQuantError, match="embedding_bits"):
            dataclasses.replace(recipe, embedding_bits=bits)


def test_tuning_leaves_the_tables_as_they_are(
    made: tuple[Path, Path, Recipe], tiny_text_file: Path, tmp_path: Path
) -> None:
    settings = TuneSettings(steps=2, batch=1, rate=1e-3, held_out=2, checks=1, seqlen=32)
    tune(made[1], resolve(str(made[0])), settings, tmp_path / "tuned", "cpu", TuneText(str(tiny_text_file)))
    assert not verify(tmp_path / "tuned", original=str(made[0])).problems
    tables = read_layout(made[1]).tables
    assert read_layout(tmp_path / "tuned").tables == tables
    before, after = (read_tensors(max(folder.glob("*.safetensors"))) for folder in (made[1], tmp_path / "tuned"))
    for name in tables:
        assert torch.equal(before[f"{name}.words"], after[f"{name}.words"])
        assert torch.equal(before[f"{name}.row_scale"], after[f"{name}.row_scale"])
