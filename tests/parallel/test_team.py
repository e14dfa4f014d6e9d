"""Two processes started by torchrun give what one gives: tests of the whole command line over gloo."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.parallel.team import Team, joined, launched, team
from tests.families import pack

ROOT = Path(__file__).resolve().parents[2]


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
    assert alone.gather(1) == [1] and alone.broadcast("x") == "x"
    assert alone.run_on_all(lambda: 2) == [2] and alone.run_on_rank0(lambda: 3) == 3

    def fail() -> None:
        raise NestQuantError("a", "b", "c")

    for way in (alone.run_on_all, alone.run_on_rank0):
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


@pytest.mark.slow
def test_two_processes_quantize_as_one(single: Path, double: Path) -> None:
    """Sums of H are exact, so the order of the windows changes no bit."""
    shards = sorted(path.name for path in single.glob("*.safetensors"))
    assert shards == sorted(path.name for path in double.glob("*.safetensors"))
    for name in (*shards, "config.json"):
        assert (single / name).read_bytes() == (double / name).read_bytes(), name


@pytest.mark.slow
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


@pytest.mark.slow
def test_two_processes_share_the_requests_of_tasks(single: Path, tmp_path: Path) -> None:
    tasks = ["--include-path", ROOT / "tests" / "tasks", "--tasks", "sample_piqa"]
    done = torchrun("eval-tasks", single, *tasks, "--output", tmp_path / "tasks.json")
    found = json.loads((tmp_path / "tasks.json").read_text())
    assert "acc,none" in found["results"]["sample_piqa"] and found["protocol"]["processes"] == 2
    assert done.stdout.count("sample_piqa") == 1


@pytest.mark.slow
def test_bad_input_is_reported(tmp_path: Path, tiny_model_folder: Path, tiny_text_file: Path) -> None:
    text = ["--dataset", tiny_text_file, "--samples", 1, "--seqlen", 64]
    done = torchrun("quantize", tiny_model_folder, *text, "--output", tmp_path / "out", code=1)
    assert "error: 1 calibration windows cannot be divided over 2 processes" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "environment",
    [{"RANK": "1"}, {"RANK": "1", "WORLD_SIZE": "1"}, {"WORLD_SIZE": "2"}, {"RANK": "", "WORLD_SIZE": "two"}],
)
def test_a_rank_without_a_launch_is_a_process_alone(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As shells of clusters have it: nothing is silenced, and nobody is waited for."""
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert launched() == Team(0, 1)
    with joined("cpu") as device:
        assert device == "cpu"


PROGRAM = """
import sys, time
from nestquant_cli.cli import console
from nestquant_cli.parallel.team import joined, team
def work():
    with joined("cpu"):
        group = team()
        group.gather(None)
        print("joined", flush=True)
        if group.rank == 1:
            if sys.argv[1] == "together": group.run_on_all(lambda: 1 / 0)
            time.sleep(600)
        group.gather(None)
sys.exit(console.run(work))
"""


@pytest.mark.parametrize("how", ["killed", "together"])
def test_without_torchrun_the_others_end_within_seconds(how: str) -> None:
    """Two processes that were started by hand; one waits for the other in an exchange."""
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, how],
            env=environment | {"RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        for process in running:
            assert process.stdout is not None and process.stdout.readline() == "joined\n"
        if how == "killed":
            running[1].kill()
        found = []
        for process in running:
            _, stderr = process.communicate(timeout=30)
            found.append((process.returncode, [line for line in stderr.splitlines() if line.startswith("error:")]))
    finally:
        for process in running:
            process.kill()
            process.wait()
    (code, lines), (own_code, own_lines) = found
    assert code == 2 and len(lines) == 1 and "process 1 of this run has ended before the others" in lines[0]
    if how == "killed":
        assert own_code == -9
    else:
        assert own_code == 2 and len(own_lines) == 1 and "internal error" in own_lines[0]
