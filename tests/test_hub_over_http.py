"""Commands and the Hub, over HTTP: a model and a data set are fetched and a checkpoint is pushed by the real clients.

One process runs the commands one after the other, since most of a short command's time is spent importing libraries.
Between two of them it asks the server for a path of its own, by which the requests of each are told apart.
"""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from tests.conftest import TEXT
from tests.hub_server import Hub, Repository, Request, serving

ROOT = Path(__file__).resolve().parents[1]
WIKITEXT = "Salesforce/wikitext"
CARD = """---
configs:
- config_name: wikitext-2-raw-v1
  data_files:
  - {split: test, path: "wikitext-2-raw-v1/test-*"}
  - {split: train, path: "wikitext-2-raw-v1/train-*"}
---
"""
RUNNER = """
import json, sys, urllib.request
from nestquant_cli.cli.main import main
for name, words in json.loads(sys.argv[1]):
    urllib.request.urlopen(sys.argv[2] + "/mark/" + name)
    try:
        main(words)
    except SystemExit as leaving:
        print("\\n=== " + json.dumps([name, leaving.code]), flush=True)
        print("\\n=== " + name, file=sys.stderr, flush=True)
"""


@dataclass(frozen=True)
class Done:
    """What came of a command."""

    code: int
    output: str
    error: str
    requests: list[Request]

    @property
    def resolutions(self) -> list[str]:
        """Paths by which it asked what a revision of a model is."""
        return [request.path for request in self.requests if request.resolves]


@dataclass(frozen=True)
class Course:
    """All commands by name, and what was there afterwards."""

    done: dict[str, Done]
    hub: Hub
    folder: Path
    first: str  # commit of the tag v1
    second: str  # commit of main


def parquet(rows: int) -> bytes:
    buffer = io.BytesIO()
    lines = [f" {number} {line}" for number in range(rows) for line in TEXT.splitlines(keepends=True)]
    pyarrow.parquet.write_table(pyarrow.table({"text": lines}), buffer)
    return buffer.getvalue()


def commands(folder: Path) -> list[tuple[str, list[str]]]:
    text = ["--dataset", "wikitext2", "--seqlen", "64"]
    packed = str(folder / "packed")
    quantize = ["quantize", "org/tiny", "--bits", "4", *text, "--samples", "2", "--output", packed]
    score = ["eval-ppl", packed, "--baseline", "org/tiny@v1", *text, "--max-windows", "2"]
    push = ["push", packed, "me/tiny-w4", "--results", str(folder / "ppl.json")]
    return [
        ("broken", quantize),
        ("quantize", quantize),
        ("score", [*score, "--output", str(folder / "ppl.json")]),
        ("push", push),
        ("edited", push),
        ("fetched", ["eval-ppl", "me/tiny-w4", *text, "--max-windows", "2"]),
        ("gated", ["generate", "org/gated", "hello"]),
        ("unknown", ["generate", "org/unknown", "hello"]),
        ("revision", ["generate", "org/tiny", "hello", "--revision", "v9"]),
        ("limited", ["generate", "org/limited", "hello"]),
    ]


@pytest.fixture(scope="module")
def course(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Course]:
    folder = tmp_path_factory.mktemp("over-http")
    with serving() as hub:
        files = {path.name: path.read_bytes() for path in tiny_model_folder.iterdir()}
        tiny = hub.repositories["models/org/tiny"] = Repository()
        first = tiny.commit(files, "v1")
        second = tiny.commit(files | {"pytorch_model.bin": b"pickle", "original/w.safetensors": b"x"}, "main")
        hub.repositories["models/org/gated"] = Repository(gated=True)
        hub.repositories["models/org/gated"].commit(files, "main")
        texts = {f"wikitext-2-raw-v1/{name}-00000-of-00001.parquet": parquet(60) for name in ("test", "train")}
        hub.repositories[f"datasets/{WIKITEXT}"] = Repository()
        hub.repositories[f"datasets/{WIKITEXT}"].commit({"README.md": CARD.encode()} | texts, "main")
        marks = [""]

        def fault(request: Request) -> int | str | None:
            if request.path.startswith("/mark/"):
                marks.append(Path(request.path).name)
                if marks[-1] == "edited":
                    edit(hub.repositories["models/me/tiny-w4"])
            if "/org/limited" in request.path:
                return 429
            weights = request.method == "GET" and request.path.endswith("/model.safetensors")
            return weights_fault(hub, marks[-1]) if weights else None

        hub.fault = fault
        done = run(hub, folder)
        yield Course(done, hub, folder, first, second)


def weights_fault(hub: Hub, mark: str) -> int | str | None:
    """The connection is lost half way through the weights, and when the client asks again, the Hub is down."""
    asked = sum(each.method == "GET" and each.path.endswith("/model.safetensors") for each in hub.requests)
    return ("cut" if asked == 1 else 503) if mark == "broken" else None


def edit(repository: Repository) -> None:
    """Somebody writes into the card on the Hub, and the owner makes the repository public."""
    files = dict(repository.commits[repository.refs["main"]])
    files["README.md"] += b"\nWritten on the Hub.\n"
    repository.commit(files, "main")


def run(hub: Hub, folder: Path) -> dict[str, Done]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = {name: value for name, value in environment.items() if "proxy" not in name.lower()}
    environment |= {"HF_HOME": str(folder / "home"), "HF_ENDPOINT": hub.address, "HF_TOKEN": "hf_of_the_test"}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-c", RUNNER, json.dumps(commands(folder)), hub.address]
    result = subprocess.run(line, capture_output=True, text=True, timeout=600, env=environment, cwd=folder)
    assert result.returncode == 0, result.stderr
    outputs, errors = result.stdout.split("\n=== "), result.stderr.split("\n=== ")
    places = [at for at, request in enumerate(hub.requests) if request.path.startswith("/mark/")] + [None]
    done = {}
    for number, (name, _) in enumerate(commands(folder)):
        told, code = json.loads(outputs[number + 1].splitlines()[0])
        assert told == name
        requests = hub.requests[places[number] : places[number + 1]]
        output, error = (text if number == 0 else text.partition("\n")[2] for text in (outputs[number], errors[number]))
        done[name] = Done(int(code or 0), output, error, requests)
    return done


def error_of(done: Done) -> str:
    lines = [line for line in done.error.splitlines() if line.startswith("error: ")]
    assert done.code == 2 and len(lines) == 1 and "Traceback" not in done.error, done.error
    return lines[0]


pytestmark = pytest.mark.slow


def test_a_broken_download_is_one_line_and_the_next_run_completes_it(course: Course) -> None:
    assert "503" in error_of(course.done["broken"]) and not (course.folder / "packed" / "INCOMPLETE").exists()
    done = course.done["quantize"]
    assert done.code == 0, done.error
    fetched = [r.path for r in done.requests if r.method == "GET" and r.path.startswith("/org/tiny/resolve/")]
    assert fetched == [f"/org/tiny/resolve/{course.second}/model.safetensors"]


def test_each_command_looks_a_commit_up_once(course: Course) -> None:
    tiny, packed = "/api/models/org/tiny", "/api/models/me/tiny-w4"
    wanted = {"broken": [tiny], "quantize": [tiny], "score": [f"{tiny}/revision/v1"], "fetched": [packed]}
    assert {name: course.done[name].resolutions for name in wanted} == wanted
    for name, (commit, other) in {"quantize": (course.second, course.first), "score": (course.first, "main")}.items():
        paths = [r.path for r in course.done[name].requests if r.path.startswith("/org/tiny/")]
        assert paths and all(f"/{commit}/" in path and f"/{other}/" not in path for path in paths)
    every = {Path(r.path).name for done in course.done.values() for r in done.requests if "/resolve/" in r.path}
    assert not every & {"pytorch_model.bin", "w.safetensors"}


def test_checkpoint_and_result_record_the_commits(course: Course) -> None:
    config = json.loads((course.folder / "packed" / "config.json").read_text())
    recipe: dict[str, Any] = config["quantization_config"]["recipe"]
    assert (recipe["base_model"], recipe["base_commit"]) == ("org/tiny", course.second)
    report = json.loads((course.folder / "packed" / "quantization_report.json").read_text())
    assert report["recipe"]["base_commit"] == course.second
    assert course.done["score"].code == 0, course.done["score"].error
    protocol = json.loads((course.folder / "ppl.json").read_text())["protocol"]
    assert (protocol["baseline"]["commit"], protocol["baseline"]["revision"]) == (course.first, "v1")
    assert protocol["dataset"] == "wikitext2" and protocol["model"]["commit"] is None
    assert f"reference: org/tiny at commit {course.first[:12]}" in course.done["score"].output


def test_what_was_pushed_is_whole_private_and_runs(course: Course) -> None:
    assert course.done["push"].code == 0, course.done["push"].error
    repository = course.hub.repositories["models/me/tiny-w4"]
    files = repository.commits[repository.refs["main"]]
    assert repository.private
    for path in (course.folder / "packed").iterdir():
        assert files[path.name] == path.read_bytes() or path.name == "README.md", path.name
    card = files["README.md"].decode()
    assert f"org/tiny at commit {course.second[:12]}" in card and "model-index" in card and "license: mit" in card
    done = course.done["fetched"]
    assert done.code == 0, done.error
    assert f"me/tiny-w4 at commit {repository.refs['main'][:12]}" in done.output and "weights int8" in done.output


def test_what_was_written_on_the_hub_stays(course: Course) -> None:
    assert course.done["edited"].code == 0, course.done["edited"].error
    repository = course.hub.repositories["models/me/tiny-w4"]
    for card in (
        repository.commits[repository.refs["main"]]["README.md"].decode(),
        (course.folder / "packed" / "README.md").read_text(),
    ):
        assert card.count("Written on the Hub.") == 1 and card.count("## Recipe") == 1


def test_every_refusal_is_one_line_with_a_remedy(course: Course) -> None:
    for name, cause, remedy in (
        ("gated", "'org/gated' is a gated model", "ask for access on its page, then run 'hf auth login'"),
        ("unknown", "'org/unknown' is neither a folder here nor a model", "check the spelling"),
        ("revision", "'org/tiny' has no revision 'v9'", "give a branch, a tag or a commit"),
        ("limited", "takes no more requests", "run the command again in some minutes"),
    ):
        line = error_of(course.done[name])
        assert cause in line and remedy in line, line
