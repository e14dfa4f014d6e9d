"""What a configuration asks for is refused before it is made, in one line and at once."""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.checkpoint.load import load_model
from nestquant_cli.models.size_limits import check_counts, meta_model, refuse_size
from nestquant_cli.models.source import load_config, load_tokenizer, resolve
from nestquant_cli.models.weights import open_weights
from nestquant_cli.pipeline.plan import make_plan
from nestquant_cli.pipeline.recipe import Recipe
from nestquant_cli.storage.files import read_json, write_json

SECONDS = 10.0


@pytest.fixture
def hostile(tiny_model_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    def make(**changes: Any) -> Path:
        copy = Path(shutil.copytree(tiny_model_folder, tmp_path / "copy"))
        write_json(copy / "config.json", read_json(copy / "config.json") | changes)
        return copy

    return make


@pytest.fixture(autouse=True)
def _at_once() -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < SECONDS


def plan(folder: Path) -> object:
    return make_plan(resolve(str(folder)), Recipe())


def load(folder: Path) -> object:
    return load_model(resolve(str(folder)))


def open_lazily(folder: Path) -> object:
    return open_weights(resolve(str(folder)), "cpu")


@pytest.mark.parametrize("reader", [plan, load, open_lazily])
@pytest.mark.parametrize("layers", [10**6, 10**12, -1, "many"])
def test_layers_without_end(hostile: Callable[..., Path], reader: Callable[[Path], object], layers: object) -> None:
    if reader is plan and layers == -1:
        return  # a plan of a model that its files do not have is a plan of nothing
    with pytest.raises(NestQuantError):
        reader(hostile(num_hidden_layers=layers))


@pytest.mark.parametrize("reader", [load, open_lazily])
@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("num_hidden_layers", 4000, "it has 4000 layers, the tensors of its files are 21"),
        ("vocab_size", 10**9, r"it asks for [\d,]+ numbers, its files have"),
        ("hidden_size", 2**40, "asks for|no usable model"),
        ("intermediate_size", 10**12, "asks for"),
        ("head_dim", 2 * 10**9, "asks for"),
        ("num_attention_heads", -4, "negative dimension"),
    ],
)
def test_sizes_that_the_files_do_not_have(
    hostile: Callable[..., Path], reader: Callable[[Path], object], name: str, value: int, told: str
) -> None:
    with pytest.raises(NestQuantError, match=told):
        reader(hostile(**{name: value}))


def test_a_tokenizer_is_not_blamed_for_the_configuration(hostile: Callable[..., Path]) -> None:
    with pytest.raises(NestQuantError, match="the configuration of copy cannot be loaded"):
        load_tokenizer(resolve(str(hostile(num_hidden_layers="many"))))


@pytest.mark.parametrize("config", [{"num_labels": 10**9}, {"text_config": {"n_layers": 10**9}}])
def test_lists_without_end_are_refused_before_they_are_made(config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is 1000000000, more than"):
        check_counts(config)


def test_what_is_said_of_the_packed_parts_is_not_counted() -> None:
    check_counts({"num_hidden_layers": 30, "layer_types": ["full"], "quantization_config": {"layers": 10**9}})


def test_a_model_of_its_own_files_is_let_through(tiny_model_folder: Path) -> None:
    config = load_config(resolve(str(tiny_model_folder)))
    model = meta_model(config)
    assert all(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    refuse_size(model, shapes)
    again = AutoConfig.from_pretrained(tiny_model_folder)
    assert again.to_dict() == config.to_dict()  # building changed nothing in it
