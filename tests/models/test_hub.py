"""The Hub's client and a small server on the loopback address: what is asked, what is fetched, what is refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import close_session, constants
from transformers import AutoModelForCausalLM

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.checkpoint.load import load_model
from nestquant_cli.models import hub as module
from nestquant_cli.models.resolve import resolve
from nestquant_cli.models.source import load_tokenizer, weight_files
from nestquant_cli.models.weight_set import INDEX
from tests.hub_server import Hub, Repository, Request, serving


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model_folder: Path) -> Iterator[Hub]:
    """A hub with org/tiny: a tag, a branch and useless files; the client talks to it alone, with an empty cache."""
    module.unreachable.cache_clear()
    with serving() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.address)
        template = f"{running.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        files = {path.name: path.read_bytes() for path in tiny_model_folder.iterdir()}
        tiny = running.repositories["models/org/tiny"] = Repository()
        tiny.commit(files, "v1", "main")
        useless = {"pytorch_model.bin": b"pickle", "consolidated.safetensors": b"x", "onnx/config.json": b"{}"}
        tiny.commit(files | useless | {"notes.md": b"#"}, "main")
        yield running
    module.unreachable.cache_clear()


def resolutions(hub: Hub) -> int:
    return sum(request.resolves for request in hub.requests)


def test_a_model_is_of_one_commit_though_the_branch_moves_on(hub: Hub) -> None:
    tiny = hub.repositories["models/org/tiny"]
    source = resolve("org/tiny")
    before = tiny.refs["main"]
    tiny.commit({"config.json": b"{}"}, "main")
    assert source.hub is not None and source.hub.sha == before and Path(source.path).name == before
    load_tokenizer(source)
    assert not (Path(source.path) / "model.safetensors").exists(), "weights come when they are read"
    assert load_model(source) is not None
    assert resolutions(hub) == 1
    assert {path.name for path in Path(source.path).iterdir()} == {
        *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
    }
    paths = [request.path for request in hub.requests if "/resolve/" in request.path]
    assert paths and all(f"/resolve/{before}/" in path for path in paths)


@pytest.mark.parametrize("form", ["org/tiny@v1", "--revision", "sha"])
def test_a_revision_is_named_in_two_ways(hub: Hub, form: str) -> None:
    sha = hub.repositories["models/org/tiny"].refs["v1"]
    named = {"org/tiny@v1": ("org/tiny@v1", None), "--revision": ("org/tiny", "v1"), "sha": ("org/tiny", sha)}[form]
    source = resolve(*named)
    assert source.hub is not None and (source.name, source.hub.sha) == ("org/tiny", sha)


def test_one_set_of_weights_is_fetched(hub: Hub) -> None:
    files = hub.repositories["models/org/tiny"].commits[hub.repositories["models/org/tiny"].refs["v1"]]
    weights = files["model.safetensors"]
    index = b'{"weight_map": {"a": "model-00001-of-00001.safetensors"}}'
    both = files | {INDEX: index, "model-00001-of-00001.safetensors": weights, "consolidated.safetensors": weights}
    hub.repositories["models/org/both"] = Repository()
    hub.repositories["models/org/both"].commit(
        both | {"consolidated.safetensors.index.json": b'{"weight_map": {"a": "consolidated.safetensors"}}'}, "main"
    )
    assert [path.name for path in weight_files(resolve("org/both"))] == ["model-00001-of-00001.safetensors"]
    asked = {Path(request.path).name for request in hub.requests if request.path.endswith(".safetensors")}
    assert asked == {"model-00001-of-00001.safetensors"}


def test_without_a_connection_the_cache_has_what_was_fetched(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(NestQuantError, match="neither a folder here nor a model"):
        resolve("org/none")
    source = resolve("org/tiny@v1")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    again = resolve("org/tiny@v1")
    assert again.path == source.path and "Connection refused" in caplog.text and "from the cache" in caplog.text
    with pytest.raises(NestQuantError, match=r"org/tiny has no \.safetensors weight file"):
        weight_files(again)
    with pytest.raises(NestQuantError, match=r"cannot be reached .*Connection refused"):
        resolve("org/tiny")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    caplog.clear()
    assert resolve("org/tiny", "v1").path == source.path and not caplog.text


def refused(name: str, **settings: str) -> str:
    with pytest.raises(NestQuantError) as caught:
        weight_files(resolve(name, **settings))
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_every_refusal_has_a_remedy(hub: Hub) -> None:
    tiny = hub.repositories["models/org/tiny"]
    assert "has no revision 'v9'" in refused("org/tiny@v9") and "a branch, a tag or a commit" in refused("org/tiny@v9")
    assert "hf auth login" in refused("org/none")
    tiny.gated = True
    assert "gated model" in refused("org/tiny") and "ask for access" in refused("org/tiny")
    tiny.gated = False
    hub.repositories["models/org/blocks"] = Repository()
    hub.repositories["models/org/blocks"].commit({"m-Q4_0.gguf": b"GGUF", "m-Q8_0.gguf": b"GGUF"}, "main")
    assert "hf download org/blocks m-Q4_0.gguf" in refused("org/blocks")
    for status, cause, remedy in (
        (429, "takes no more requests", "in some minutes"),
        (403, "refused", "hf auth login"),
        (503, "could not give", "again later"),
    ):
        hub.fault = lambda request, status=status: status if request.resolves else None
        assert cause in refused("org/tiny") and remedy in refused("org/tiny"), status


def fetched(hub: Hub) -> list[str]:
    """Names of the files that were asked for, in order."""
    return [Path(each.path).name for each in hub.requests if each.method == "GET" and "/resolve/" in each.path]


def test_a_download_that_breaks_off_goes_on_at_once_or_by_the_next_run(hub: Hub) -> None:
    answers: list[int | str | None] = ["cut", None]

    def cut(request: Request) -> int | str | None:
        weights = request.method == "GET" and request.path.endswith("model.safetensors")
        return answers.pop(0) if weights and answers else None

    hub.fault = cut
    weight_files(resolve("org/tiny@v1"))
    assert fetched(hub).count("model.safetensors") == 2, "the client itself asks again"

    tiny = hub.repositories["models/org/tiny"]
    files = dict(tiny.commits[tiny.refs["main"]])
    tiny.commit(files | {"model.safetensors": files["model.safetensors"][:-1] + b"\x01", "a.json": b"{}"}, "main")
    answers += ["cut", 503]
    with pytest.raises(NestQuantError, match="503"):
        weight_files(resolve("org/tiny"))
    del hub.requests[:]
    assert load_model(resolve("org/tiny")) is not None
    assert fetched(hub) == ["model.safetensors"], "what arrived whole is kept"


def test_a_connection_that_stays_lost_is_one_line(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # of the client between its tries
    hub.fault = lambda request: "drop" if request.path.endswith("model.safetensors") else None
    assert "broke off" in refused("org/tiny") and "run the same command again" in refused("org/tiny")


@pytest.mark.parametrize("altered", [False, True])
def test_a_packed_checkpoint_is_checked_when_transformers_loads_it_by_its_id(
    hub: Hub, tiny_checkpoint: Path, tmp_path: Path, altered: bool
) -> None:
    files = {path.name: path.read_bytes() for path in tiny_checkpoint.iterdir()}
    if altered:
        shard = next(name for name in files if name.endswith(".safetensors"))
        files[shard] = files[shard][:-1] + bytes([files[shard][-1] ^ 1])
    hub.repositories["models/me/packed"] = Repository()
    sha = hub.repositories["models/me/packed"].commit(files, "main")
    arguments: dict[str, Any] = {"cache_dir": tmp_path / "own"}
    if altered:
        with pytest.raises(NestQuantError, match=f"{shard} was altered"):
            AutoModelForCausalLM.from_pretrained("me/packed", **arguments)
        return
    model = AutoModelForCausalLM.from_pretrained("me/packed", **arguments)
    model.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "nestquant_manifest.json").is_file(), "its report came along"
    paths = [request.path for request in hub.requests if "/resolve/" in request.path]
    assert all(f"/resolve/{sha}/" in path or path.endswith("/config.json") for path in paths)
    assert load_model(resolve("me/packed")).dtype == model.dtype


def test_a_revision_of_what_is_here_is_refused(hub: Hub, tiny_model_folder: Path) -> None:
    with pytest.raises(NestQuantError, match="is here and has no revisions"):
        resolve(str(tiny_model_folder), "main")
    with pytest.raises(NestQuantError, match="names one revision, --revision another"):
        resolve("org/tiny@v1", "main")
    with pytest.raises(NestQuantError, match="does not exist"):
        resolve("org/tiny@")
    assert not hub.requests


def test_a_proxy_and_an_encryption_that_fails_are_named(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", hub.address.replace("http:", "https:"))  # which it does not speak
    assert "[SSL" in refused("org/tiny") and "SSL_CERT_FILE" in refused("org/tiny")
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
    monkeypatch.setenv("http_proxy", "http://user:secret@127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    close_session()  # the next one reads the environment
    line = refused("org/tiny")
    assert "by way of the proxy 127.0.0.1" in line and "secret" not in line
    reason = module.unreachable()
    assert reason is not None and "by way of the proxy 127.0.0.1" in reason
    monkeypatch.undo()
    close_session()
