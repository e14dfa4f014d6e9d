"""`nestquant push` to a local fake with the interface of the Hub's client: nothing here reaches the network."""

import dataclasses
import inspect
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from huggingface_hub import HfApi, ModelCardData

from nestquant_cli.checkpoint.inspect import inspect as count_bits
from nestquant_cli.checkpoint.load import load_model
from nestquant_cli.models.source import load_tokenizer, resolve
from nestquant_cli.sharing import push as module
from tests.families import Outcome, error_line, in_process


class FakeHub:
    """Repositories in memory; every call must fit the signature of the client's own method."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.repos: dict[str, SimpleNamespace] = {}
        self.calls: list[str] = []
        self.refusal: Exception | None = None
        data = ModelCardData(license="other", license_name="tiny-licence", license_link="LICENSE", language=["en"])
        self.repos["org/tiny"] = SimpleNamespace(private=False, card_data=data, files={}, sha="0", siblings=[])

    def __getattr__(self, name: str) -> Callable[..., Any]:
        signature = inspect.signature(getattr(HfApi, name))

        def call(*args: Any, **named: Any) -> Any:
            bound = signature.bind(self, *args, **named).arguments
            self.calls.append(name)
            if self.refusal is not None and name != "model_info":
                raise self.refusal
            return getattr(self, f"_{name}")(**{key: value for key, value in bound.items() if key != "self"})

        return call

    def _create_repo(self, repo_id: str, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        self.repos.setdefault(repo_id, SimpleNamespace(private=private, card_data=None, files={}, sha="0", siblings=[]))

    def _model_info(self, repo_id: str) -> SimpleNamespace:
        return self.repos[repo_id]

    def _upload_folder(
        self, repo_id: str, folder_path: str, allow_patterns: list[str], commit_message: str, parent_commit: str
    ) -> None:
        files = {name: (Path(folder_path) / name).read_bytes() for name in allow_patterns}
        self.repos[repo_id].files = files
        assert commit_message and parent_commit == self.repos[repo_id].sha
        self.repos[repo_id].siblings = [SimpleNamespace(rfilename=name) for name in files]

    def _hf_hub_download(self, repo_id: str, filename: str, revision: str) -> str:
        assert revision == self.repos[repo_id].sha
        self.place.mkdir(exist_ok=True)
        (self.place / filename).write_bytes(self.repos[repo_id].files[filename])
        return str(self.place / filename)

    def _update_repo_settings(self, repo_id: str, private: bool) -> None:
        self.repos[repo_id].private = private


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeHub:
    fake = FakeHub(tmp_path / "downloads")
    monkeypatch.setattr(module, "hub_api", lambda: fake)
    return fake


@pytest.fixture
def nestquant(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    return in_process(capfd, monkeypatch)


@pytest.fixture
def packed(talking_packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(talking_packed, tmp_path / "packed"))


def card_of(folder: Path) -> tuple[dict[str, Any], str]:
    _, head, body = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(head), body


def test_what_is_pushed_is_private_complete_and_loads(
    nestquant: Callable[..., Outcome], hub: FakeHub, packed: Path, tmp_path: Path
) -> None:
    (packed / "notes.txt").write_text("not part of the checkpoint")
    code, output, error = nestquant("push", packed, "me/tiny-w4a4kv4", "--base-model", "org/tiny")
    assert code == 0, error
    assert "me/tiny-w4a4kv4 on the Hugging Face Hub" in output
    repo = hub.repos["me/tiny-w4a4kv4"]
    assert repo.private and "notes.txt" not in repo.files and "README.md" in repo.files
    assert hub.calls.index("create_repo") < hub.calls.index("upload_folder")
    fetched = tmp_path / "fetched"
    fetched.mkdir()
    for name, content in repo.files.items():
        (fetched / name).write_bytes(content)
    assert load_model(resolve(str(fetched))) is not None
    assert nestquant("verify", fetched)[0] == 0


def test_a_tokenizer_that_was_saved_next_to_the_model_is_pushed(
    nestquant: Callable[..., Outcome], hub: FakeHub, packed: Path, tmp_path: Path
) -> None:
    load_model(resolve(str(packed))).save_pretrained(tmp_path / "again")
    load_tokenizer(resolve(str(packed))).save_pretrained(tmp_path / "again")
    (tmp_path / "again" / "notes.txt").write_text("not part of the checkpoint")
    code, _, error = nestquant("push", tmp_path / "again", "me/again", "--base-model", "org/tiny")
    assert code == 0, error
    files = hub.repos["me/again"].files
    assert {"tokenizer.json", "tokenizer_config.json", "model.safetensors"} <= files.keys() and "notes.txt" not in files


def test_the_card_says_what_is_known(
    nestquant: Callable[..., Outcome],
    hub: FakeHub,
    packed: Path,
    talking: Path,
    tiny_text_file: Path,
    tmp_path: Path,
) -> None:
    ppl, tasks = tmp_path / "ppl.json", tmp_path / "tasks.json"
    text = ["--dataset", tiny_text_file, "--seqlen", 64, "--max-windows", 2]
    assert nestquant("eval-ppl", packed, *text, "--baseline", talking, "--output", ppl)[0] == 0
    own = Path(__file__).parents[1] / "tasks"
    words = ["--tasks", "sample_piqa", "--limit", 2, "--include-path", own, "--output", tasks]
    words += ["--num-fewshot", 1, "--apply-chat-template", "--system-instruction", "be brief"]
    assert nestquant("eval-tasks", packed, *words)[0] == 0
    found = json.loads(ppl.read_text())
    words = ["--base-model", "org/tiny", "--results", ppl, "--results", tasks, "--dry-run"]
    code, output, error = nestquant("push", packed, "me/tiny", *words)
    assert code == 0 and hub.calls == ["model_info"], error
    assert str(packed / "README.md") in output
    head, body = card_of(packed)
    assert head["base_model"] == "org/tiny" and head["base_model_relation"] == "quantized"
    assert (head["license"], head["license_name"], head["language"]) == ("other", "tiny-licence", ["en"])
    results = {each["metrics"][0]["type"]: each for each in head["model-index"][0]["results"]}
    assert results["perplexity"]["metrics"][0]["value"] == found["perplexity"]
    assert results["perplexity"]["dataset"]["name"] == "tiny.txt" and results["acc"]["dataset"]["name"] == "sample_piqa"
    assert f"Original: {talking.name}." in body
    for key in ("perplexity", "baseline_perplexity", "top1_agreement"):
        assert f"{found[key]:.4f}" in body
    assert f"{count_bits(packed).bits_per_weight:.4f} bits per weight" in body
    assert "2 of " in body and "windows of 64 tokens" in body and "sample_piqa" in body and "lm-eval" in body
    assert "nestquant eval-ppl CKPT --dataset tiny.txt" in body
    assert "nestquant eval-tasks CKPT --tasks sample_piqa --num-fewshot 1 --limit 2.0 --apply-chat-template " in body
    assert "--system-instruction 'be brief'" in body and "1 shots, with chat template" in body
    assert "| damping | 0.01 |" in body and "[tiny-licence](LICENSE)" in body
    assert str(tmp_path) not in body and str(tiny_text_file.parent) not in body


def test_public_comes_last_and_only_when_asked(nestquant: Callable[..., Outcome], hub: FakeHub, packed: Path) -> None:
    words = ["push", packed, "me/tiny", "--base-model", "org/tiny"]
    assert nestquant(*words, "--public")[0] == 0
    assert not hub.repos["me/tiny"].private and hub.calls[-1] == "update_repo_settings"
    hub.repos["me/tiny"].files = {}
    code, _, error = nestquant(*words)
    assert code == 2 and "public already" in error_line(error) and not hub.repos["me/tiny"].files


def test_what_cannot_be_pushed_is_refused_before_the_hub_is_touched(
    nestquant: Callable[..., Outcome], hub: FakeHub, packed: Path, talking: Path, tiny_text_file: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.json"
    text = ["--dataset", tiny_text_file, "--seqlen", 64, "--max-windows", 1]
    assert nestquant("eval-ppl", talking, *text, "--output", other)[0] == 0
    hub.repos["org/bare"] = SimpleNamespace(private=False, card_data=None, files={}, sha="0", siblings=[])
    for words, message in (
        ([], "the base model is not known"),
        (["--base-model", "org/bare"], "names no licence"),
        (["--base-model", "org/<b>"], "is not a Hub id"),
        (["--base-model", "org/tiny", "--results", other], "is of another model"),
        (["--base-model", "org/tiny", "--results", packed / "config.json"], "is not a result"),
    ):
        code, _, error = nestquant("push", packed, "me/tiny", *words)
        assert code == 2 and message in error_line(error), words
    shard = packed / "model-00001-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x55")
    code, _, error = nestquant("push", packed, "me/tiny", "--base-model", "org/tiny")
    assert code == 2 and shard.name in error_line(error)
    assert set(hub.calls) <= {"model_info"} and not (packed / "README.md").exists()


def test_what_the_hub_refuses_is_one_line(nestquant: Callable[..., Outcome], hub: FakeHub, packed: Path) -> None:
    hub.refusal = RuntimeError("401 Client Error.\nInvalid username or password.")
    code, _, error = nestquant("push", packed, "me/tiny", "--base-model", "org/tiny", "--license", "mit")
    assert code == 2 and "refused (401 Client Error)" in error_line(error) and "hf auth login" in error_line(error)
    assert hub.calls == ["create_repo"] and card_of(packed)[0]["license"] == "mit"


def test_what_people_wrote_into_the_card_stays_here_and_on_the_hub(
    nestquant: Callable[..., Outcome], hub: FakeHub, packed: Path
) -> None:
    readme = packed / "README.md"
    push = ["push", packed, "me/tiny", "--base-model", "org/tiny"]
    assert nestquant(*push)[0] == 0
    head, _, rest = readme.read_text().partition("\n---\n\n")
    readme.write_text(f"{head}\ngallery: [a, b]\n---\n\nMine above.\n\n{rest}\nMine below.\n")
    assert nestquant(*push, "--dry-run")[0] == 0 and "Mine above." in readme.read_text()
    assert nestquant(*push)[0] == 0
    remote = hub.repos["me/tiny"]
    for text in (readme.read_text(), remote.files["README.md"].decode()):
        assert text.count("Mine above.") == text.count("Mine below.") == 1
        assert text.count("## Recipe") == 1 and "gallery" in text

    remote.files["README.md"] = remote.files["README.md"].replace(b"Mine below.", b"Edited on the Hub.")
    assert nestquant(*push)[0] == 0
    assert "Edited on the Hub." in readme.read_text() and "Mine below." not in readme.read_text()
    assert "Edited on the Hub." in remote.files["README.md"].decode()

    remote.files["README.md"] = remote.files["README.md"].replace(b"Edited on", b"Edited again on")
    readme.write_text(readme.read_text().replace("Mine above.", "Mine, edited too."))
    before = dict(remote.files), readme.read_text()
    code, _, error = nestquant(*push)
    assert code == 2 and "edited here and in me/tiny" in error_line(error)
    assert remote.files == before[0] and "Mine, edited too." in readme.read_text()
    readme.unlink()
    assert nestquant(*push)[0] == 0 and "Edited again on the Hub." in readme.read_text()


def test_a_card_without_our_marks_is_kept_whole(nestquant: Callable[..., Outcome], hub: FakeHub, packed: Path) -> None:
    (packed / "README.md").write_text("# My model\n\nWritten by hand.\n")
    assert nestquant("push", packed, "me/tiny", "--base-model", "org/tiny")[0] == 0
    text = hub.repos["me/tiny"].files["README.md"].decode()
    assert "# My model\n\nWritten by hand." in text and "## Recipe" in text
    (packed / "README.md").write_text("---\nlicense: [\n---\n")
    code, _, error = nestquant("push", packed, "me/tiny", "--base-model", "org/tiny")
    assert code == 2 and "metadata of" in error_line(error)


def test_nothing_of_a_recipe_breaks_the_card(
    nestquant: Callable[..., Outcome], hub: FakeHub, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = "a|b\n\n# Heading\n<script>x</script> `code` [link](javascript:x) \x1b[2J\u202e"
    recipe = {"dataset": bad, bad: 1, "model": bad}
    real = module.inspect
    monkeypatch.setattr(module, "inspect", lambda folder: dataclasses.replace(real(folder), recipe=recipe))
    code, _, error = nestquant("push", packed, "me/tiny", "--base-model", "org/tiny", "--license", "mit", "--dry-run")
    assert code == 0, error
    _, body = card_of(packed)
    assert "<script>" not in body and "\n# Heading" not in body and "\x1b" not in body and "\u202e" not in body
    rows = [line for line in body.splitlines() if "Heading" in line]
    assert len(rows) == 4 and all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in rows[1:])
