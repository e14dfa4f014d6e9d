import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.checkpoint.manifest import CONFIG, INDEX, MANIFEST, check_files, read_manifest
from nestquant_cli.checkpoint.output import Output
from nestquant_cli.storage.resume import WORK, refuse_foreign

KEY = {"recipe": {"weight_bits": 4.0, "seed": 0}, "model_sha256": "ab"}
PARTS = [{"a.words": torch.arange(8, dtype=torch.uint8)}, {"b.weight": torch.ones(2, 3).t()}]


def write_all(output: Output) -> None:
    for number, tensors in enumerate(PARTS):
        output.write(number, tensors, {"part": number})


def test_a_finished_folder_is_complete_and_holds_no_state(tmp_path: Path) -> None:
    output = Output(tmp_path / "out", KEY, 2, resume=True)
    write_all(output)
    output.finish({"model_type": "x"}, {"matrices": {}})
    assert sorted(path.name for path in output.folder.iterdir()) == sorted(
        ["config.json", MANIFEST, INDEX, "quantization_report.json", output.shard(0), output.shard(1)]
    )
    manifest = check_files(output.folder)
    assert manifest["tensors"]["b.weight"]["shape"] == [3, 2]
    assert torch.equal(load_file(output.folder / output.shard(0))["a.words"], PARTS[0]["a.words"])


def test_shards_have_the_permissions_of_the_other_files(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        output = Output(tmp_path / "out", KEY, 2, resume=True)
        write_all(output)
        output.finish({}, {})
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in output.folder.iterdir()} == {0o640}


def test_config_json_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = Output(tmp_path / "out", KEY, 2, resume=True)
    write_all(output)
    assert not (output.folder / "config.json").exists()

    def killed(*_: object) -> None:
        assert (output.folder / MANIFEST).exists()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.copyfile", killed)
        with pytest.raises(KeyboardInterrupt):
            output.finish({"model_type": "x"}, {})
    output.state.release()
    with pytest.raises(NestQuantError, match="did not finish"):
        read_manifest(output.folder)
    again = Output(output.folder, KEY, 2, resume=True)
    again.finish({"model_type": "x"}, {})
    check_files(output.folder)


def test_an_interrupted_run_goes_on_after_its_finished_parts(tmp_path: Path) -> None:
    first = Output(tmp_path / "out", KEY, 2, resume=True)
    first.write(0, PARTS[0], {"part": 0})
    first.state.release()
    (first.folder / first.shard(1)).write_bytes(b"half")  # no record of it: it does not count
    again = Output(tmp_path / "out", KEY, 2, resume=True)
    assert again.done(0) == {"part": 0}
    assert again.done(1) is None


def test_a_finished_part_whose_shard_is_gone_is_done_again(tmp_path: Path) -> None:
    output = Output(tmp_path / "out", KEY, 2, resume=True)
    output.write(0, PARTS[0], {"part": 0})
    (output.folder / output.shard(0)).unlink()
    assert output.done(0) is None


def test_without_resume_a_run_starts_over(tmp_path: Path) -> None:
    write_all(Output(tmp_path / "out", KEY, 2, resume=True))
    again = Output(tmp_path / "out", KEY, 2, resume=False)
    assert again.done(0) is None and again.done(1) is None
    assert [path.name for path in again.folder.iterdir()] == [WORK]


def test_another_key_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    write_all(Output(tmp_path / "out", KEY, 2, resume=True))
    other = json.loads(json.dumps(KEY))
    other["recipe"]["weight_bits"] = 3.5
    with pytest.raises(NestQuantError, match=r"recipe\.weight_bits 4\.0 instead of 3\.5"):
        Output(tmp_path / "out", other, 2, resume=True)
    Output(tmp_path / "out", other, 2, resume=False)


def test_a_foreign_folder_or_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(NestQuantError, match="is not empty"):
        Output(tmp_path, KEY, 2, resume=False)
    with pytest.raises(NestQuantError, match="is a file"):
        Output(tmp_path / "notes.txt", KEY, 2, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    (tmp_path / "empty").mkdir()
    refuse_foreign(tmp_path / "empty", CONFIG)


def test_a_complete_checkpoint_is_not_overwritten(copy: Path) -> None:
    for _ in range(2):
        with pytest.raises(NestQuantError, match="is not empty"):
            refuse_foreign(copy, CONFIG)
        (copy / WORK).mkdir(exist_ok=True)  # killed between config.json and the removal of its state
    check_files(copy)


def test_a_damaged_state_is_one_clear_error(tmp_path: Path) -> None:
    with Output(tmp_path / "out", KEY, 2, resume=True) as output:
        (output.state.work / "run.json").write_text("{")
    with pytest.raises(NestQuantError, match="not valid JSON"):
        Output(tmp_path / "out", KEY, 2, resume=True)
