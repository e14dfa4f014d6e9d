import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.checkpoint.load import load_model
from nestquant_cli.checkpoint.manifest import INDEX
from nestquant_cli.checkpoint.read import check_checkpoint, open_checkpoint, read_layout
from nestquant_cli.models.source import resolve
from nestquant_cli.modules.layout import FORMAT_VERSION
from nestquant_cli.modules.parse_layout import parse_layout
from nestquant_cli.pipeline.recipe import Recipe

Rewrite = Callable[[str, Any], None]


def layout_of(config: Any) -> Any:
    return config["quantization_config"]["layout"]


def test_a_whole_checkpoint_passes(tiny_checkpoint: Path, tiny_recipe: Recipe) -> None:
    check_checkpoint(tiny_checkpoint)
    check_checkpoint(str(tiny_checkpoint))
    layout = read_layout(tiny_checkpoint)
    assert layout.weight_shape == tiny_recipe.shape("weight")
    assert len(layout.linears) == 14 and len(layout.inputs) == 8 and len(layout.cache) == 2


def test_what_is_no_packed_checkpoint_is_told_apart(tmp_path: Path, tiny_model_folder: Path) -> None:
    for folder, told in (
        (tmp_path / "none", "does not exist"),
        (tiny_model_folder / "config.json", "is a file"),
        (tmp_path, "is not a packed checkpoint"),
        (tiny_model_folder, "is not a packed checkpoint"),
    ):
        with pytest.raises(NestQuantError, match=told):
            open_checkpoint(folder)


@pytest.mark.parametrize(
    "edit",
    [
        [],
        {},
        lambda c: c.update(quantization_config=[]),
        lambda c: c["quantization_config"].update(quant_method=["nestquant"]),
        lambda c: c["quantization_config"].update(layout=None),
        lambda c: layout_of(c).update(format_version=99),
        lambda c: layout_of(c).update(format_version="1"),
        lambda c: layout_of(c).update(seed=0.5),
        lambda c: layout_of(c).update(weight_code={"q": 13, "k": 5, "word_bits": 31, "limit": 127}),
        lambda c: layout_of(c).update(weight_code={"q": 1 << 40, "k": 5, "word_bits": 32, "limit": 127}),
        lambda c: layout_of(c).update(linears=[]),
        lambda c: layout_of(c).update(inputs={}),
        lambda c: layout_of(c).update(cache={}),
        lambda c: layout_of(c)["cache"].append({}),
        lambda c: layout_of(c)["linears"]["model.layers.0.mlp.up_proj"].update(in_features=1 << 60),
        lambda c: layout_of(c)["linears"]["model.layers.0.mlp.up_proj"].update(out_features=-1),
        lambda c: layout_of(c)["linears"]["model.layers.0.mlp.up_proj"].update(multipliers=[3, 2]),
        lambda c: layout_of(c)["linears"]["model.layers.0.mlp.up_proj"].update(multipliers=list(range(1, 9))),
        lambda c: layout_of(c)["linears"]["model.layers.0.mlp.up_proj"].update(multipliers=["3"]),
        lambda c: layout_of(c)["inputs"]["model.layers.0.mlp.gate_proj"].update(unit=float("nan")),
        lambda c: layout_of(c)["inputs"]["model.layers.0.mlp.gate_proj"].update(unit=-1),
    ],
)
def test_a_hostile_config_is_refused(copy: Path, rewrite: Rewrite, edit: Any) -> None:
    rewrite("config.json", edit)
    with pytest.raises(NestQuantError):
        check_checkpoint(copy)


def test_a_config_of_another_version_says_so(copy: Path, rewrite: Rewrite) -> None:
    rewrite("config.json", lambda c: layout_of(c).update(format_version=FORMAT_VERSION + 1))
    with pytest.raises(NestQuantError, match=f"format version {FORMAT_VERSION + 1}, this nestquant reads 1"):
        check_checkpoint(copy)


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        ([], "has no weight_map"),
        (lambda i: i.update(weight_map=None), "has no weight_map"),
        (lambda i: i["weight_map"].pop("lm_head.weight"), "places lm_head.weight in None"),
        (
            lambda i: i["weight_map"].update({"lm_head.weight": "../x.safetensors"}),
            "lm_head.weight in ../x.safetensors",
        ),
    ],
)
def test_an_index_that_leads_elsewhere_is_refused(copy: Path, rewrite: Rewrite, edit: Any, told: str) -> None:
    rewrite(INDEX, edit)
    with pytest.raises(NestQuantError, match=told):
        check_checkpoint(copy)


def test_the_layout_survives_json(tiny_checkpoint: Path) -> None:
    layout = read_layout(tiny_checkpoint)
    assert parse_layout(json.loads(json.dumps(layout.to_dict()))) == layout


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", 1),
        ("hidden_size", 10**9),
        ("hidden_size", 128),
        ("vocab_size", 10**15),
        ("vocab_size", "many"),
        ("intermediate_size", -5),
        ("num_attention_heads", 0),
        ("model_type", "../../x"),
        ("model_type", "bert"),
    ],
)
def test_a_hostile_config_is_refused_before_anything_is_built(
    copy: Path, rewrite: Callable[[str, Any], None], name: str, value: object
) -> None:
    """With right hashes, as whoever made the checkpoint can give them."""
    rewrite("config.json", lambda config: config.update({name: value}))
    start = time.monotonic()
    with pytest.raises(NestQuantError):
        load_model(resolve(str(copy)))
    assert time.monotonic() - start < 20
