"""A whole tuning of a tiny model: it pays, it repeats to the byte, it resumes, and it refuses what is not its own."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.calibration.text import load_text
from nestquant_cli.calibration.windows import token_windows
from nestquant_cli.checkpoint.load import load_model
from nestquant_cli.checkpoint.read import read_layout
from nestquant_cli.checkpoint.verify import verify
from nestquant_cli.models.source import load_tokenizer, resolve
from nestquant_cli.storage.files import read_json
from nestquant_cli.storage.resume import WORK
from nestquant_cli.tuning import tune as run
from nestquant_cli.tuning.distill import Distillation
from nestquant_cli.tuning.held_out import TuneText
from nestquant_cli.tuning.optimizer import TuneState
from nestquant_cli.tuning.settings import TuneSettings
from nestquant_cli.tuning.tune import tune
from tests.families import pack

SETTINGS = TuneSettings(steps=12, seqlen=32, rate=0.003, held_out=4, checks=3)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path, tiny_text_file: Path) -> Path:
    return pack(tiny_model_folder, tiny_text_file, tmp_path_factory.mktemp("tune") / "packed")


@pytest.fixture
def do(packed: Path, tiny_model_folder: Path, tiny_text_file: Path) -> Any:
    def tuned(folder: Path, checkpoint: Path = packed, model: Path = tiny_model_folder, **changes: Any) -> Any:
        settings = TuneSettings(**SETTINGS.to_dict() | changes)
        return tune(checkpoint, resolve(str(model)), settings, folder, "cpu", TuneText(str(tiny_text_file)))

    return tuned


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_the_tuned_checkpoint_is_sound_and_closer_to_the_original(
    do: Any, packed: Path, tiny_model_folder: Path, tiny_text_file: Path, tmp_path: Path
) -> None:
    before = contents(packed)
    report = do(tmp_path / "tuned", steps=40, batch=4, held_out=16, checks=4)  # fewer would be luck
    assert contents(packed) == before
    tuning = report["tuning"]
    assert tuning["loss_after"] < 0.98 * tuning["loss_before"]
    assert [done for done, _ in tuning["checks"]] == [0, 10, 20, 30, 40]
    checked = verify(tmp_path / "tuned", str(tiny_model_folder))
    assert checked.problems == [] and checked.matrices == 14 and len(report["tuned"]) == 5
    section = read_json(tmp_path / "tuned" / "config.json")["quantization_config"]
    assert section["recipe"]["tune"]["steps"] == 40 and section["layout"] == read_layout(packed).to_dict()
    windows = token_windows(load_text(str(tiny_text_file), "train"), load_tokenizer(resolve(str(packed))), 32)
    losses = [
        Distillation(
            load_model(resolve(str(tiny_model_folder))), load_model(resolve(str(folder))), read_layout(folder)
        ).score(windows[:20])
        for folder in (packed, tmp_path / "tuned")
    ]
    assert losses[1] < losses[0]


def test_an_interrupted_run_ends_with_the_same_bytes(do: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    do(tmp_path / "whole")
    monkeypatch.setattr(run, "SAVE_SECONDS", 0.0)
    step, taken = TuneState.step, []

    def dying(state: TuneState, *arguments: Any) -> None:
        taken.append(state.done)
        if len(taken) == 6:
            raise KeyboardInterrupt
        step(state, *arguments)

    monkeypatch.setattr(TuneState, "step", dying)
    with pytest.raises(KeyboardInterrupt):
        do(tmp_path / "cut")
    assert (tmp_path / "cut" / WORK / run.STATE).is_file()
    with pytest.raises(NestQuantError, match=r"tune\.steps"):
        do(tmp_path / "cut", steps=13)
    do(tmp_path / "cut")
    assert taken == [0, 1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10, 11]
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_where_nothing_gets_better_nothing_changes(do: Any, packed: Path, tmp_path: Path) -> None:
    report = do(tmp_path / "tuned", rate=1.0, steps=2)
    assert report["tuning"]["loss_after"] == report["tuning"]["loss_before"]
    shards = [name for name in contents(packed) if name.endswith(".safetensors")]
    assert all((packed / name).read_bytes() == (tmp_path / "tuned" / name).read_bytes() for name in shards)


def test_other_models_and_tuned_checkpoints_are_refused(
    do: Any, make_model_folder: Any, tmp_path: Path, packed: Path
) -> None:
    other = make_model_folder(tmp_path / "other", 1)
    with pytest.raises(NestQuantError, match="was not made from other"):
        do(tmp_path / "tuned", model=other)
    do(tmp_path / "tuned", steps=1)
    with pytest.raises(NestQuantError, match="tuned already"):
        do(tmp_path / "again", checkpoint=tmp_path / "tuned")
    with pytest.raises(NestQuantError, match="not a packed checkpoint"):
        do(tmp_path / "again", checkpoint=other)


def test_an_altered_gain_is_found_by_comparing_with_the_original(
    do: Any, tiny_model_folder: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    from nestquant_cli.checkpoint.manifest import MANIFEST, describe_files, describe_tensors
    from nestquant_cli.storage.files import write_json
    from nestquant_cli.tuning.tuned_checkpoint import shards_of

    do(tmp_path / "tuned", steps=2)
    folder = Path(shutil.copytree(tmp_path / "tuned", tmp_path / "altered"))
    manifest = read_json(folder / MANIFEST)
    last = shards_of(manifest)[-1]
    tensors = load_file(folder / last)
    tensors["model.norm.weight"] *= torch.linspace(0.5, 1.5, 64)
    save_file(tensors, folder / last, metadata={"format": "pt"})
    manifest["files"] = describe_files(folder, list(manifest["files"]))
    manifest["tensors"] = describe_tensors(folder, shards_of(manifest))
    write_json(folder / MANIFEST, manifest)
    problems = [str(problem) for problem in verify(folder, str(tiny_model_folder)).problems]
    assert len(problems) == 1 and "model.norm.weight: its change from the original" in problems[0]
