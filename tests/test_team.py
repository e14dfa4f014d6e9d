"""Two processes started by torchrun give what one gives: tests of the whole command line over gloo."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nestquant_cli.errors import NestQuantError
from nestquant_cli.team import Team, team
from tests.families import pack

ROOT = Path(__file__).resolve().parents[1]


def torchrun(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    """The command on two processes; `--standalone` takes a free port."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = [*launcher, "-m", "nestquant_cli", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, env=environment, cwd=ROOT)
    assert done.returncode == code, done.stderr
    return done


def test_a_process_alone_is_a_team_of_one() -> None:
    alone = team()
    assert alone == Team() and alone.leads
    tensor = torch.ones(3)
    alone.sum(tensor)
    assert torch.equal(tensor, torch.ones(3))
    assert alone.gather(1) == [1] and alone.tell("x") == "x"
    assert alone.together(lambda: 2) == [2] and alone.lead(lambda: 3) == 3

    def fail() -> None:
        raise NestQuantError("a", "b", "c")

    for way in (alone.together, alone.lead):
        with pytest.raises(NestQuantError, match="a; b; c"):
            way(fail)


@pytest.mark.parametrize("count", [0, 1, 5, 8])
def test_shares_cover_everything_in_order(count: int) -> None:
    for size in (1, 2, 3):
        shares = [Team(rank, size).share(count) for rank in range(size)]
        assert [number for share in shares for number in share] == list(range(count))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path, tiny_text_file: Path) -> Path:
    return pack(tiny_model_folder, tiny_text_file, tmp_path_factory.mktemp("team") / "single", samples=3)


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path, tiny_text_file: Path) -> Path:
    folder = tmp_path_factory.mktemp("team")
    text = ["--dataset", tiny_text_file, "--samples", 3, "--seqlen", 64]
    torchrun("calibrate", tiny_model_folder, "--output", folder / "calibration", *text)
    torchrun("quantize", tiny_model_folder, "--calibration", folder / "calibration", "--output", folder / "double")
    return folder / "double"


def test_two_processes_quantize_as_one(single: Path, double: Path) -> None:
    """Sums of H are exact, so the order of the windows changes no bit."""
    shards = sorted(path.name for path in single.glob("*.safetensors"))
    assert shards == sorted(path.name for path in double.glob("*.safetensors"))
    for name in (*shards, "config.json"):
        assert (single / name).read_bytes() == (double / name).read_bytes(), name


def test_two_processes_score_as_one(single: Path, tiny_text_file: Path, tmp_path: Path) -> None:
    def score(name: str, run: Any) -> dict[str, Any]:
        run(
            "eval-ppl",
            single,
            "--dataset",
            tiny_text_file,
            "--seqlen",
            48,
            "--max-windows",
            5,
            "--output",
            tmp_path / name,
        )
        found: dict[str, Any] = json.loads((tmp_path / name).read_text())
        return found

    def alone(*arguments: object) -> None:
        words = [sys.executable, "-m", "nestquant_cli", *map(str, arguments)]
        subprocess.run(words, check=True, capture_output=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})

    one, two = score("one.json", alone), score("two.json", torchrun)
    assert two["perplexity"] == one["perplexity"] and two["standard_error"] == one["standard_error"]
    assert two["windows"] == 5 and two["protocol"]["processes"] == 2


def test_two_processes_share_the_requests_of_tasks(single: Path, tmp_path: Path) -> None:
    tasks = ["--include-path", ROOT / "tests" / "tasks", "--tasks", "sample_piqa"]
    done = torchrun("eval-tasks", single, *tasks, "--output", tmp_path / "tasks.json")
    found = json.loads((tmp_path / "tasks.json").read_text())
    assert "acc,none" in found["results"]["sample_piqa"] and found["protocol"]["processes"] == 2
    assert done.stdout.count("sample_piqa") == 1


def test_bad_input_is_told(tmp_path: Path, tiny_model_folder: Path, tiny_text_file: Path) -> None:
    text = ["--dataset", tiny_text_file, "--samples", 1, "--seqlen", 64]
    done = torchrun("quantize", tiny_model_folder, *text, "--output", tmp_path / "out", code=1)
    assert "error: 1 calibration windows cannot be divided over 2 processes" in done.stderr
    assert not (tmp_path / "out").exists()
