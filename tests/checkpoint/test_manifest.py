import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.checkpoint.manifest import INDEX, MANIFEST, REPORT, check_files, read_manifest
from nestquant_cli.storage.resume import WORK

FIRST = "model-00001-of-00003.safetensors"
Rewrite = Callable[[str, Any], None]


def test_it_lists_every_file_but_itself_and_every_tensor(tiny_checkpoint: Path) -> None:
    manifest = check_files(tiny_checkpoint)
    names = {path.name for path in tiny_checkpoint.iterdir()}
    assert set(manifest["files"]) == names - {MANIFEST}
    assert {"config.json", INDEX, REPORT, FIRST, "tokenizer.json"} <= names
    for name, item in manifest["files"].items():
        content = (tiny_checkpoint / name).read_bytes()
        assert item == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    index = json.loads((tiny_checkpoint / INDEX).read_text())
    assert index["weight_map"] == {name: item["file"] for name, item in manifest["tensors"].items()}
    assert index["metadata"]["total_size"] == sum(item["bytes"] for item in manifest["tensors"].values())


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        ([], "not an object"),
        (lambda m: m.update(format_version=2), "format version 2"),
        (lambda m: m.pop("format_version"), "format version None"),
        (lambda m: m.update(files=[]), "files"),
        (lambda m: m.update(files={}, tensors={}), "does not list config.json"),
        (lambda m: m["files"].update(a=1), "files"),
        (lambda m: m["files"].update(a={"bytes": "1", "sha256": ""}), "files"),
        (lambda m: m["files"].update({"../x": m["files"]["config.json"]}), "files"),
        (lambda m: m["files"].update({"..": m["files"]["config.json"]}), "files"),
        (lambda m: m["files"].update({"": m["files"]["config.json"]}), "files"),
        (lambda m: m["files"].update({"/etc/passwd": m["files"]["config.json"]}), "files"),
        (lambda m: m["files"].update({"a\0b": m["files"]["config.json"]}), "files"),
        (lambda m: m["files"].pop(REPORT), REPORT),
        (lambda m: m.update(tensors=None), "tensors"),
        (lambda m: m["tensors"].update(a={}), "tensors"),
        (lambda m: m["tensors"].update(a={"file": "../x", "dtype": "", "shape": [], "sha256": ""}), "tensors"),
    ],
)
def test_an_unusable_manifest_is_refused(copy: Path, rewrite: Rewrite, edit: Any, told: str) -> None:
    rewrite(MANIFEST, edit)
    with pytest.raises(NestQuantError, match=told) as refused:
        read_manifest(copy)
    assert str(copy / MANIFEST) in refused.value.cause


def test_a_manifest_that_is_not_json_is_refused(copy: Path) -> None:
    (copy / MANIFEST).write_text("{")
    with pytest.raises(NestQuantError, match="not valid JSON"):
        read_manifest(copy)


def test_no_manifest_and_no_config_are_told_apart(copy: Path) -> None:
    (copy / MANIFEST).rename(copy / "x")
    with pytest.raises(NestQuantError, match=f"has no {MANIFEST}"):
        read_manifest(copy)
    (copy / "config.json").unlink()
    with pytest.raises(NestQuantError, match="incomplete: it has no config"):
        read_manifest(copy)
    (copy / WORK).mkdir()
    with pytest.raises(NestQuantError, match="incomplete: its quantization did not finish"):
        read_manifest(copy)


def test_every_file_that_is_missing_short_long_or_altered_is_named(tiny_checkpoint: Path, copy: Path) -> None:
    for path in sorted(tiny_checkpoint.iterdir()):
        content = path.read_bytes()
        flipped = content[:-1] + bytes([content[-1] ^ 1])
        damages = {"is truncated": content[:-1], "is too long": content + b" ", "was altered": flipped}
        for told, damaged in damages.items() if path.name != MANIFEST else ():
            (copy / path.name).write_bytes(damaged)
            with pytest.raises(NestQuantError, match=f"{path.name} {told}"):
                check_files(copy)
        (copy / path.name).unlink()
        with pytest.raises(NestQuantError, match=path.name):
            check_files(copy)
        (copy / path.name).write_bytes(content)
    check_files(copy)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "a.safetensors.index.json"])
def test_weights_that_are_not_listed_are_refused(copy: Path, name: str) -> None:
    (copy / name).write_bytes(b"")
    with pytest.raises(NestQuantError, match=f"{name} is not in the manifest"):
        check_files(copy)
