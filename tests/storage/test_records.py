"""Records of finished steps and snapshots of steps at work: what is on disk, whole, safe or unused."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.storage import records as module
from nestquant_cli.storage.records import Record, RecordFile, RecordFolder, Records, Snapshot
from nestquant_cli.storage.resume import RunState
from nestquant_cli.storage.run import Run

KEY = {"file": "a.safetensors", "sha256": "0f"}


@pytest.mark.parametrize("form", ["folder", "file"])
def test_a_record_counts_for_its_own_key_alone(form: str, tmp_path: Path) -> None:
    def opened() -> Run:
        records: Records = RecordFolder(tmp_path) if form == "folder" else RecordFile(tmp_path / "all.json", ["step"])
        return Run(tmp_path, tmp_path / "lock", records)

    assert opened().get("step/1" if form == "file" else "step-1", KEY) is None
    step = "step/1" if form == "file" else "step-1"
    opened().put(step, KEY, {"x": [1]})
    assert opened().get(step, KEY) == {"x": [1]} and opened().get(step, KEY | {"sha256": "1f"}) is None
    opened().put(step, KEY | {"sha256": "1f"}, None)
    assert opened().get(step, KEY) is None


def test_the_files_are_those_that_earlier_versions_wrote(tmp_path: Path) -> None:
    RecordFolder(tmp_path).write("part-00003", Record(KEY, {"layout": {}}))
    assert json.loads((tmp_path / "part-00003.json").read_text()) == {**KEY, "info": {"layout": {}}}
    RecordFile(tmp_path / "progress.json", ["runs", "scores"]).write("scores/w4", Record({"of": 1}, [1.5]))
    written = {"runs": {}, "scores": {"w4": {"key": {"of": 1}, "value": [1.5]}}}
    assert json.loads((tmp_path / "progress.json").read_text()) == written


@pytest.mark.parametrize("text", ["[]", "3", "null"])
def test_what_is_no_record_counts_as_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "part.json").write_text(text)
    assert RecordFolder(tmp_path).read("part") is None
    for written in (text, json.dumps({"runs": json.loads(text)}), json.dumps({"runs": {"w4": json.loads(text)}})):
        (tmp_path / "all.json").write_text(written)
        assert RecordFile(tmp_path / "all.json", ["runs"]).read("runs/w4") is None


def test_a_snapshot_goes_with_the_state_of_its_run(tmp_path: Path) -> None:
    state = RunState(tmp_path / "out", {}, "last")
    snapshot = state.snapshot("tuning.pt")
    assert snapshot.load() is None
    snapshot.save({"theta": torch.ones(3), "losses": [0.5]})
    state.release()
    again = RunState(tmp_path / "out", {}, "last")
    found = again.snapshot("tuning.pt").load()
    assert found is not None and torch.equal(found["theta"], torch.ones(3)) and found["losses"] == [0.5]
    again.close()
    assert not (tmp_path / "out" / "INCOMPLETE").exists()


class _Program:
    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.touched),)


def damaged(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "a program":
        torch.save({"theta": torch.zeros(8), "best": _Program(path.parent / "ran")}, path)
    elif how == "a tensor":
        torch.save(torch.zeros(8), path)
    else:
        path.write_bytes({"cut": content[:-1], "empty": b"", "text": b"a state"}[how])


@pytest.mark.parametrize("how", ["cut", "empty", "text", "a program", "a tensor"])
def test_what_is_no_snapshot_is_named_and_not_used(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warned: list[Any] = []
    monkeypatch.setattr(module.logger, "warning", lambda *words: warned.append(words[1]))
    snapshot = Snapshot(tmp_path / "state")
    assert snapshot.load() is None and warned == []  # an absent one is not named
    snapshot.save({"theta": torch.zeros(8)})
    damaged(snapshot.path, how)
    assert snapshot.load() is None and warned == [snapshot.path]
    assert not (tmp_path / "ran").exists()


def test_a_full_disk_leaves_the_snapshot_before_and_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = Snapshot(tmp_path / "state")
    snapshot.save({"theta": torch.zeros(8)})
    before, replacing = snapshot.path.read_bytes(), module.replacing

    class Full:
        def __init__(self, path: Path) -> None:
            self.inner = replacing(path)

        def __enter__(self) -> Path:
            self.inner.__enter__()
            return Path("/dev/full")

        def __exit__(self, *error: Any) -> Any:
            return self.inner.__exit__(*error)

    monkeypatch.setattr(module, "replacing", Full)
    with pytest.raises(NestQuantError, match="No space left"):
        snapshot.save({"theta": torch.zeros(100_000)})
    assert snapshot.path.read_bytes() == before
