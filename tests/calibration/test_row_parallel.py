from typing import Any

import pytest
import torch
from torch import nn
from transformers import MptConfig, PreTrainedModel

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.calibration.row_parallel import Divided, Following, row_parallel
from nestquant_cli.codecs.registry import shape_of
from nestquant_cli.models.structure import linears, open_decoder
from tests.expert_models import make_experts
from tests.families import from_config, make_model
from tests.hybrids import HYBRIDS

WHOLE = Divided(1, 8)
ATTENTION_AND_MLP = ["mlp.down_proj", "self_attn.o_proj"]


def found(model: PreTrainedModel, layer: int = 1, divided: Divided = WHOLE) -> set[str]:
    """Row-parallel Linears of a layer, experts without their numbers."""
    with Following(open_decoder(model).layers[layer]) as following, torch.inference_mode():
        model(input_ids=torch.arange(8)[None], use_cache=False)
    names = following.row_parallel(divided, f"layers.{layer}")
    return {name.partition(".expert_")[0] for name in names}


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llama", ATTENTION_AND_MLP),
        ("gemma3", ATTENTION_AND_MLP),
        ("phi3", ATTENTION_AND_MLP),
        ("phi", ["mlp.fc2", "self_attn.dense"]),
        ("opt", ["fc2", "self_attn.out_proj"]),
        ("gpt_neox", ["attention.dense", "mlp.dense_4h_to_h"]),
        ("gemma4", [*ATTENTION_AND_MLP, "per_layer_projection"]),
    ],
)
def test_families_by_structure(family: str, expected: list[str]) -> None:
    assert found(make_model(family)) == set(expected)


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("gpt2", ["attn.c_proj", "mlp.c_proj"]),
        ("lfm2", ["feed_forward.w2", "self_attn.out_proj"]),
        ("mamba2", ["mixer.out_proj"]),
    ],
)
def test_other_mixers(family: str, expected: list[str]) -> None:
    assert found(from_config(HYBRIDS[family]())) == set(expected)


def test_attention_of_another_make() -> None:
    config = MptConfig(vocab_size=300, d_model=64, n_layers=2, n_heads=4, max_seq_len=256)
    assert found(from_config(config)) == {"attn.out_proj", "ffn.down_proj"}


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "llama4"])
def test_experts(family: str) -> None:
    names = found(make_experts(family))
    (experts,) = (name for name in names if "experts" in name)
    assert experts.endswith("experts.down_proj") and "self_attn.o_proj" in names
    model = make_experts(family)
    layer = open_decoder(model).layers[1]
    every = {name for name in linears(layer) if name.startswith(f"{experts}.expert_")}
    with Following(layer) as following, torch.inference_mode():
        model(input_ids=torch.arange(1)[None], use_cache=False)  # a token that some experts do not get
    assert every <= following.row_parallel(WHOLE, "layer")


class Block(nn.Module):
    """A layer with a bottleneck in front of attention, as latent attention has it."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.down, self.up, self.out = nn.Linear(16, 16), nn.Linear(16, inner), nn.Linear(inner, 16)

    def forward(self, x: Any) -> Any:
        return x + self.out(self.up(self.down(x)))


def test_a_bottleneck_whose_product_goes_into_another_matrix_is_none() -> None:
    layer = Block(16)
    assert row_parallel(layer, WHOLE, "layer", lambda: layer(torch.ones(1, 16))) == {"out"}


@pytest.mark.parametrize(
    ("inner", "parts", "remedy"),
    [(48, 4, "use --tensor-parallel 3"), (24, 2, "leave --tensor-parallel out"), (20, 2, "leave --tensor-parallel")],
)
def test_inputs_that_cannot_be_divided_are_refused(inner: int, parts: int, remedy: str) -> None:
    layer = Block(inner)
    with pytest.raises(
        NestQuantError, match=rf"the {inner} inputs of layer.out cannot be divided into {parts} parts.*{remedy}"
    ):
        row_parallel(layer, Divided(parts, 8), "layer", lambda: layer(torch.ones(1, 16)))


def test_groups_of_columns_stay_whole() -> None:
    assert Divided.of(2, shape_of("integer", 4, {"group": 32}, "weight")).unit == 32
    assert Divided.of(2, shape_of("nestquant", 4, None, "weight")) == Divided(2, 8) == Divided.of(2, None)
