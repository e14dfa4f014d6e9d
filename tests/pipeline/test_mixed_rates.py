"""Mixed rates from end to end: the average on disk, sound files, the same bytes again and after an interruption."""

from pathlib import Path
from typing import Any

import pytest
import torch

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.checkpoint.inspect import inspect
from nestquant_cli.checkpoint.output import Output
from nestquant_cli.checkpoint.read import read_layout
from nestquant_cli.checkpoint.verify import verify
from nestquant_cli.models.source import resolve
from nestquant_cli.modules.parse_layout import parse_layout
from nestquant_cli.modules.resident import set_resident
from nestquant_cli.pipeline import mixed_rates as mixed
from nestquant_cli.pipeline.quantize import calibrate
from nestquant_cli.pipeline.recipe import Recipe
from nestquant_cli.pipeline.sensitivities_file import PICTURE, SENSITIVITIES
from nestquant_cli.storage.files import read_json
from tests.families import load, logits, pack, random_ids


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path, tiny_text_file: Path) -> Path:
    output = tmp_path_factory.mktemp("mixed") / "packed"
    return pack(tiny_model_folder, tiny_text_file, output, weight_bits=3.5, allocation="mixed")


def test_the_checkpoint_is_sound_and_keeps_the_average(folder: Path, tiny_model_folder: Path) -> None:
    assert verify(folder, str(tiny_model_folder)).problems == []
    matrices = inspect(folder).matrices
    bits = {matrix.word_bits for matrix in matrices}
    assert len(bits) > 1 and max(bits) <= 34
    average = sum(8 * matrix.word_bytes for matrix in matrices) / sum(matrix.weights for matrix in matrices)
    assert 3.3 < average <= 3.5
    assert read_json(folder / "config.json")["quantization_config"]["layout"]["format_version"] >= 2
    assert parse_layout(read_layout(folder).to_dict()) == read_layout(folder)


@pytest.fixture(scope="module")
def of_inputs(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path, tiny_text_file: Path) -> Path:
    output = tmp_path_factory.mktemp("mixed") / "inputs"
    return pack(tiny_model_folder, tiny_text_file, output, act_allocation="mixed", channel_scales=True)


def test_inputs_keep_their_average(of_inputs: Path, tiny_model_folder: Path) -> None:
    assert verify(of_inputs, str(tiny_model_folder)).problems == []
    layout, saved = read_layout(of_inputs), read_json(of_inputs / SENSITIVITIES)
    assert layout.act_shapes and set(layout.act_shapes) < set(layout.inputs) == set(saved["inputs"])
    assert "matrices" not in saved and parse_layout(layout.to_dict()) == layout
    bits = {name: item["bits"] for name, item in saved["inputs"].items()}
    spent = sum(item["bits"] * item["entries"] for item in saved["inputs"].values())
    assert 3.5 < spent / sum(item["entries"] for item in saved["inputs"].values()) <= 4
    assert saved["average_inputs"]["expected_kl"] < saved["average_inputs"]["expected_kl_uniform"]
    for name, shape in layout.act_shapes.items():
        assert shape.word_bits == 8 * bits[name] != 32 and (shape.word_bits <= 34 or shape.codec == "integer")
    assert all(bits[name] == 4 for name in set(bits) - set(layout.act_shapes))


def test_rounded_inputs_are_multiplied_the_same_in_every_form(of_inputs: Path) -> None:
    model, ids = load(of_inputs), random_ids(1, 24)
    packed = logits(model, ids)
    set_resident(model, "int8")
    assert torch.isfinite(packed).all() and torch.equal(packed, logits(model, ids))


def test_inputs_and_matrices_are_mixed_together_and_sequentially(
    tiny_model_folder: Path, tiny_text_file: Path, tmp_path: Path
) -> None:
    both: dict[str, Any] = {"allocation": "mixed", "act_allocation": "mixed", "tie_inputs": True}
    for sequential in (False, True):
        found = pack(tiny_model_folder, tiny_text_file, tmp_path / str(sequential), sequential=sequential, **both)
        assert verify(found, str(tiny_model_folder)).problems == []
        assert {"matrices", "inputs"} <= set(read_json(found / SENSITIVITIES)) and read_layout(found).act_shapes


def test_bits_of_inputs_are_chosen_before_a_calibration(
    tiny_model_folder: Path, tiny_text_file: Path, tmp_path: Path
) -> None:
    source = resolve(str(tiny_model_folder))
    text: dict[str, Any] = {"dataset": str(tiny_text_file), "samples": 3, "seqlen": 48}
    stored = tmp_path / "stored"
    calibrate(source, Recipe(**text), stored, "cpu")
    with pytest.raises(NestQuantError, match="chosen before a calibration"):
        pack(tiny_model_folder, tiny_text_file, tmp_path / "out", calibration=stored, act_allocation="mixed", **text)
    with pytest.raises(NestQuantError, match="chosen before a calibration"):
        calibrate(source, Recipe(**text, act_allocation="mixed"), tmp_path / "other", "cpu")


def test_sensitivities_are_saved_and_drawn(folder: Path) -> None:
    saved = read_json(folder / SENSITIVITIES)
    assert saved["expected_kl"] < saved["expected_kl_uniform"]
    for name, item in saved["matrices"].items():
        code: Any = read_layout(folder).linears[name].code
        assert code.word_bits == 8 * item["bits"]
    assert (folder / PICTURE).read_bytes().startswith(b"\x89PNG")
    assert {SENSITIVITIES, PICTURE} <= set(read_json(folder / "nestquant_manifest.json")["files"])


def test_it_runs_the_same_packed_and_in_int8(folder: Path) -> None:
    model, ids = load(folder), random_ids(1, 24)
    packed = logits(model, ids)
    set_resident(model, "int8")
    assert torch.isfinite(packed).all() and torch.equal(packed, logits(model, ids))


@pytest.mark.parametrize(
    ("whole", "settings"),
    [
        ("folder", {"weight_bits": 3.5, "allocation": "mixed"}),
        ("of_inputs", {"act_allocation": "mixed", "channel_scales": True}),
    ],
)
def test_an_interrupted_run_ends_with_the_same_bytes(
    whole: str,
    settings: dict[str, Any],
    tiny_model_folder: Path,
    tiny_text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    folder: Path = request.getfixturevalue(whole)

    def again() -> Path:
        return pack(tiny_model_folder, tiny_text_file, tmp_path / "cut", **settings)

    write = Output.write

    def dying(output: Output, number: int, *arguments: Any) -> None:
        if number == 1:
            raise KeyboardInterrupt
        write(output, number, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Output, "write", dying)
        with pytest.raises(KeyboardInterrupt):
            again()
    with monkeypatch.context() as patch:
        patch.setattr(mixed, "measure_sensitivities", dying)  # which is not called again
        again()
    assert contents(tmp_path / "cut") == contents(folder)


def test_matrices_with_the_same_input_can_share_their_bits(
    folder: Path, tiny_model_folder: Path, tiny_text_file: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"weight_bits": 3.5, "allocation": "mixed", "tie_inputs": True}
    tied = pack(tiny_model_folder, tiny_text_file, tmp_path / "tied", **settings)
    assert verify(tied, str(tiny_model_folder)).problems == []
    linears, free = read_layout(tied).linears, read_layout(folder).linears
    by_input: dict[str, set[Any]] = {}
    for linear in linears.values():
        by_input.setdefault(linear.input, set()).add(linear.code)
    assert len(by_input) == 8 and all(len(codes) == 1 for codes in by_input.values())
    assert len({code for codes in by_input.values() for code in codes}) > 1
    assert any(linears[name].code != free[name].code for name in free)
    saved, apart = read_json(tied / SENSITIVITIES), read_json(folder / SENSITIVITIES)
    assert saved["expected_kl_untied"] == apart["expected_kl"] < saved["expected_kl"] < saved["expected_kl_uniform"]
    assert read_json(tied / "config.json")["quantization_config"]["recipe"]["tie_inputs"]
    assert "tie_inputs" not in read_json(folder / "config.json")["quantization_config"]["recipe"]


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(NestQuantError, match="no allocation 'best'"):
        Recipe(allocation="best")
    with pytest.raises(NestQuantError, match="mixed rates of activations choose nested codes"):
        Recipe(act_bits=8, act_allocation="mixed")
    with pytest.raises(NestQuantError, match="mixed rates of activations choose nested codes"):
        Recipe(weight_bits=4, act_bits=16, act_allocation="mixed")
    with pytest.raises(NestQuantError, match="mixed rates of activations choose nested codes"):
        Recipe(method="integer", act_allocation="mixed")
    with pytest.raises(NestQuantError, match="tie_inputs is for mixed rates"):
        Recipe(tie_inputs=True)
    with pytest.raises(NestQuantError, match="choose nested codes"):
        Recipe(allocation="mixed", weight_code={"q": 14, "k": 4}, weight_bits=4.125)
