"""`nestquant generate` and `nestquant chat` in this process; the conversation on a terminal as a process."""

import io
import logging
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nestquant_cli.base.printable import shown
from nestquant_cli.storage.files import read_json
from tests.families import Outcome, error_line, in_process

ROOT = Path(__file__).resolve().parents[2]
GREEDY = ["--max-new-tokens", 6, "--temperature", 0, "--device", "cpu"]


@pytest.fixture
def nestquant(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    return in_process(capfd, monkeypatch)


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    return lambda text: monkeypatch.setattr(sys, "stdin", io.StringIO(text))


@pytest.fixture
def notes(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """The log lines."""
    caplog.set_level(logging.INFO, "nestquant")
    return lambda: caplog.text


@pytest.mark.parametrize("name", ["talking", "talking_packed"])
def test_standard_output_has_the_new_text_alone(
    nestquant: Callable[..., Outcome],
    notes: Callable[[], str],
    name: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    folder = request.getfixturevalue(name)
    code, output, _ = nestquant("generate", folder, "The lattice", *GREEDY, "--output", tmp_path / "out.json")
    assert code == 0
    found = read_json(tmp_path / "out.json")
    assert output == shown(found["text"]) + "\n" and len(found["tokens"]) == 6
    assert found["prompt"] == "The lattice" and found["figures"]["new_tokens"] == 6
    assert found["protocol"]["model"]["kind"] == ("packed" if name == "talking_packed" else "folder")
    assert found["protocol"]["sampling"]["temperature"] == 0
    message = notes()
    assert "the most likely token each time" in message and "tokens/s" in message and "memory: weights" in message


@pytest.mark.parametrize("name", ["talking", "talking_packed"])
def test_a_hub_id_is_the_folder_that_was_downloaded(
    nestquant: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    folder = request.getfixturevalue(name)
    repository, commit = tmp_path / "models--some-org--some-model", "0" * 40
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    for path in folder.iterdir():
        (repository / "snapshots" / commit / path.name).symlink_to(path)  # as the Hub's cache has them
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    code, output, error = nestquant("generate", "some-org/some-model", "The lattice", *GREEDY)
    assert code == 0, error
    assert output == nestquant("generate", folder, "The lattice", *GREEDY)[1]


def test_a_prompt_through_a_pipe(
    nestquant: Callable[..., Outcome], piped: Callable[[str], None], talking: Path
) -> None:
    _, expected, _ = nestquant("generate", talking, "The lattice", *GREEDY)
    piped("The lattice\n")
    assert nestquant("generate", talking, *GREEDY)[:2] == (0, expected)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere/at/all", "x"], "nowhere/at/all"),
        (["MODEL", ""], "the prompt is empty"),
        (["MODEL", "x", "--top-p", "3"], "--top-p 3"),
        (["MODEL", "x", "--device", "abacus"], "abacus"),
        (["MODEL", "word " * 300], "the model takes 256"),
    ],
)
def test_bad_input_is_one_line(
    nestquant: Callable[..., Outcome], talking: Path, words: list[str], message: str
) -> None:
    code, output, error = nestquant("generate", *(str(talking) if word == "MODEL" else word for word in words))
    assert (code, output) == (2, "") and message in error_line(error)


def test_a_conversation_through_a_pipe(
    nestquant: Callable[..., Outcome], piped: Callable[[str], None], notes: Callable[[], str], talking_packed: Path
) -> None:
    piped("one\n\ntwo\n/what\n/reset\none\n/exit\nnever\n")
    code, output, _ = nestquant("chat", talking_packed, *GREEDY)
    assert code == 0
    message = notes()
    assert message.count("tokens/s") == 3 and "there is no /what" in message and "forgotten" in message
    piped("one\n")
    assert output.startswith(first := nestquant("chat", talking_packed, *GREEDY)[1])
    assert output.endswith(first)


def test_a_full_context_is_reported(
    nestquant: Callable[..., Outcome], notes: Callable[[], str], talking: Path, tmp_path: Path
) -> None:
    words = [
        "generate",
        talking,
        "word " * 45,
        "--temperature",
        0,
        "--device",
        "cpu",
        "--output",
        tmp_path / "out.json",
    ]
    assert nestquant(*words, "--max-new-tokens", 400)[0] == 0
    assert "the context of 256 tokens is full" in notes()
    assert read_json(tmp_path / "out.json")["ending"] == "context"


def test_a_message_that_is_refused_does_not_end_a_conversation_through_a_pipe(
    nestquant: Callable[..., Outcome], piped: Callable[[str], None], notes: Callable[[], str], talking: Path
) -> None:
    piped("one\n\n" + "word " * 300 + "\ntwo\n")
    code, output, error = nestquant("chat", talking, *GREEDY)
    assert code == 2 and "line 3: the prompt has" in error_line(error)
    assert notes().count("tokens/s") == 2 and "left out" not in notes()
    piped("one\ntwo\n")
    assert nestquant("chat", talking, *GREEDY)[:2] == (0, output)


def test_a_model_without_a_template_cannot_chat(
    nestquant: Callable[..., Outcome], piped: Callable[[str], None], tiny_model_folder: Path
) -> None:
    piped("hello\n")
    code, _, error = nestquant("chat", tiny_model_folder, *GREEDY)
    assert code == 2 and "no chat template" in error_line(error)


def test_a_conversation_on_a_terminal(talking: Path) -> None:
    main, side = pty.openpty()
    words = [sys.executable, "-m", "nestquant_cli", "chat", str(talking), *map(str, GREEDY)]
    child = subprocess.Popen(
        words, stdin=side, stdout=side, stderr=side, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1", "TERM": "dumb"}
    )
    os.close(side)
    seen, sent = "", 0
    replies = ["hello\n", "word " * 300 + "\n", "/exit\n"]
    while True:
        try:
            seen += os.read(main, 4096).decode(errors="replace")
        except OSError:  # the other end is closed
            break
        if seen.count("\n> ") + seen.startswith("> ") > sent:
            os.write(main, replies[sent].encode())
            sent += 1
    assert child.wait() == 0, seen
    assert sent == 3 and "tokens/s" in seen
    assert "error: the prompt has" in seen  # too long a message does not end the conversation
