"""One set of weights is chosen, the same by every reader, whatever the order of the names."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.checkpoint.load import load_model
from nestquant_cli.models.source import fingerprint, resolve, weight_files
from nestquant_cli.models.weight_set import INDEX, SINGLE, weight_set
from nestquant_cli.models.weights import open_weights

OTHER = "consolidated.safetensors.index.json"


def write_index(folder: Path, name: str, *files: str) -> None:
    """Of tensors "0", "1" and so on, one of each file."""
    tensors = map(str, range(len(files)))
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": dict(zip(tensors, files, strict=True))}))


@pytest.fixture(scope="module")
def indices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("indices")
    write_index(folder, INDEX, "model-2.safetensors", "model-1.safetensors", "model-2.safetensors")
    write_index(folder, OTHER, "consolidated-1.safetensors")
    return folder


EVERYTHING = [
    *("config.json", INDEX, OTHER, SINGLE, "model-1.safetensors", "model-2.safetensors", "consolidated-1.safetensors"),
    *("pytorch_model.bin", "adapter.safetensors"),
]


@given(names=st.permutations(EVERYTHING))
def test_the_usual_index_comes_first_in_any_order(indices: Path, names: list[str]) -> None:
    found = weight_set(indices, names, {}, "m")
    assert (found.entry, found.files) == (INDEX, ("model-1.safetensors", "model-2.safetensors"))


@pytest.mark.parametrize(
    ("names", "config", "entry", "files"),
    [
        ([SINGLE, OTHER, "consolidated-1.safetensors"], {}, SINGLE, [SINGLE]),
        ([OTHER, "consolidated-1.safetensors"], {}, OTHER, ["consolidated-1.safetensors"]),
        (["weights.safetensors"], {}, "weights.safetensors", ["weights.safetensors"]),
        (["b.safetensors", "a.safetensors"], {}, None, ["a.safetensors", "b.safetensors"]),
        ([SINGLE, INDEX, OTHER], {"transformers_weights": OTHER}, OTHER, ["consolidated-1.safetensors"]),
        ([SINGLE, "b.safetensors"], {"transformers_weights": "b.safetensors"}, "b.safetensors", ["b.safetensors"]),
    ],
)
def test_then_the_usual_file_then_the_only_other_one(
    indices: Path, names: list[str], config: Any, entry: str | None, files: list[str]
) -> None:
    found = weight_set(indices, names, config, "m")
    assert (found.entry, list(found.files)) == (entry, files)


@pytest.mark.parametrize(
    ("names", "config", "message"),
    [
        ([OTHER, "mine.safetensors.index.json"], {}, "m has 2 sets of weights"),
        ([SINGLE], {"transformers_weights": "gone.safetensors"}, r"m has no gone\.safetensors"),
        ([SINGLE], {"transformers_weights": 3}, "m has no 3, which its config"),
        (["pytorch_model.bin"], {}, r"only in \.bin files, which are pickles"),
        (["m.gguf"], {}, r"no \.safetensors weight file; .*; give one of its \.gguf files as MODEL"),
        ([], {}, r"no \.safetensors weight file"),
    ],
)
def test_what_is_no_one_set_is_refused(indices: Path, names: list[str], config: Any, message: str) -> None:
    with pytest.raises(NestQuantError, match=message):
        weight_set(indices, names, config, "m")


@pytest.fixture
def two_sets(tiny_model_folder: Path, tmp_path: Path) -> Path:
    """A model in shards, beside whose index lie a whole file and another index, both of other weights."""
    folder = Path(shutil.copytree(tiny_model_folder, tmp_path / "two"))
    tensors = load_file(folder / SINGLE)
    halves = {"model-1.safetensors": {}, "model-2.safetensors": {}}
    for number, (name, tensor) in enumerate(tensors.items()):
        halves[f"model-{1 + number % 2}.safetensors"][name] = tensor
    for name, part in halves.items():
        save_file(part, folder / name, metadata={"format": "pt"})
    places = {tensor: name for name, part in halves.items() for tensor in part}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, folder / SINGLE, metadata={"format": "pt"})
    shutil.copyfile(folder / SINGLE, folder / "consolidated-1.safetensors")
    places = dict.fromkeys(tensors, "consolidated-1.safetensors")
    (folder / OTHER).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


@pytest.mark.parametrize("named", [False, True])
def test_whole_and_layer_by_layer_the_same_weights_are_read(
    two_sets: Path, tiny_model_folder: Path, named: bool
) -> None:
    wanted = load_file(tiny_model_folder / SINGLE)["model.embed_tokens.weight"]
    if named:
        config = json.loads((two_sets / "config.json").read_text())
        (two_sets / "config.json").write_text(json.dumps(config | {"transformers_weights": SINGLE}))
        wanted = wanted + 1
    source = resolve(str(two_sets))
    model = load_model(source)
    assert model.get_input_embeddings().weight.equal(wanted)
    assert open_weights(source, "cpu").fetch("model.embed_tokens.weight").equal(wanted)
    assert len(weight_files(source)) == (1 if named else 2)
    assert not hasattr(model.config, "transformers_weights")
    if not named:
        (two_sets / SINGLE).unlink()
        assert fingerprint(resolve(str(two_sets))) == fingerprint(source)


def test_an_index_of_another_name_alone_loads(two_sets: Path, tiny_model_folder: Path) -> None:
    for name in (SINGLE, INDEX, "model-1.safetensors", "model-2.safetensors"):
        (two_sets / name).unlink()
    loaded = load_model(resolve(str(two_sets))).get_input_embeddings().weight
    assert loaded.equal(load_file(tiny_model_folder / SINGLE)["model.embed_tokens.weight"] + 1)
