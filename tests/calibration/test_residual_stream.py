"""Which Linears are added to the residual stream, found by trying, and the stream in front of them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import CohereConfig, GraniteConfig, PreTrainedModel

from nestquant_cli.calibration.current_window import in_window
from nestquant_cli.calibration.residual_stream import ResidualStream, residual_adders
from nestquant_cli.models.structure import linears, open_decoder
from tests.expert_models import make_experts
from tests.families import _GATED, MORE_CONFIGS, from_config, gaussian, make_model, random_ids
from tests.hybrids import HYBRIDS

IDS = random_ids(1, 12)


def run_of(model: PreTrainedModel) -> Any:
    call: Any = model

    def run() -> None:
        with torch.inference_mode():
            call(input_ids=IDS, use_cache=False)

    return run


def found(model: PreTrainedModel, layer: int = 1, dtype: torch.dtype = torch.float32) -> tuple[str, ...]:
    model = model.to(dtype)
    return residual_adders(open_decoder(model).layers[layer], run_of(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llama", ("self_attn.o_proj", "mlp.down_proj")),
        ("phi3", ("self_attn.o_proj", "mlp.down_proj")),
        ("opt", ("self_attn.out_proj", "fc2")),
        ("gpt_neox", ("attention.dense", "mlp.dense_4h_to_h")),  # attention and MLP have one input
        ("phi", ("self_attn.dense", "mlp.fc2")),
        ("gemma2", ()),  # a norm is behind each matrix
        ("gemma3", ()),
    ],
)
def test_families_by_trying(family: str, expected: tuple[str, ...], dtype: torch.dtype) -> None:
    assert found(make_model(family), dtype=dtype) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("factor", "expected"), [(1.0, ("self_attn.o_proj", "mlp.down_proj")), (0.9, ())])
def test_a_multiplier_behind_the_matrix_is_seen(factor: float, expected: tuple[str, ...], dtype: torch.dtype) -> None:
    model = from_config(GraniteConfig(**_GATED, residual_multiplier=factor))
    assert found(model, dtype=dtype) == expected


def test_attention_and_mlp_side_by_side() -> None:
    assert found(from_config(CohereConfig(**_GATED))) == ("self_attn.o_proj", "mlp.down_proj")


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
def test_experts_are_none_whose_products_the_router_weighs(family: str) -> None:
    assert found(make_experts(family)) == ("self_attn.o_proj",)


def test_a_mixer_of_another_kind() -> None:
    assert found(from_config(HYBRIDS["mamba2"]())) == ("mixer.out_proj",)
    assert found(from_config(HYBRIDS["gpt2"]())) == ("attn.c_proj", "mlp.c_proj")


def test_several_streams_have_none() -> None:
    assert found(from_config(MORE_CONFIGS["gemma3n"]())) == ()


class Twice(nn.Module):
    """A layer that calls one Linear twice, and has a norm behind all that it adds if it is told so."""

    def __init__(self, twice: bool, normed: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)
        self.twice, self.normed = twice, normed

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden = hidden_states + self.a(hidden_states.sin())
        if self.twice:
            hidden = hidden + self.a(hidden.sin())
        hidden = hidden + self.b(hidden.sin())
        return nn.functional.layer_norm(hidden, (16,)) if self.normed else hidden


@pytest.mark.parametrize(
    ("twice", "normed", "expected"),
    [(False, False, ("a", "b")), (True, False, ()), (False, True, ())],  # behind `a` twice, `b` has another stream
)
def test_what_is_called_twice_or_has_a_norm_behind_it(twice: bool, normed: bool, expected: tuple[str, ...]) -> None:
    layer = Twice(twice, normed)
    before = dict(vars(layer.a))

    def run() -> None:
        layer(gaussian(1, 5, 16))

    assert residual_adders(layer, run) == expected
    assert not layer.a._forward_hooks and "forward" not in vars(layer.a) and vars(layer.a).keys() == before.keys()


def test_a_layer_that_is_not_called_has_none() -> None:
    assert residual_adders(Twice(False, False), lambda: None) == ()


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_the_stream_is_that_of_the_layers_sums(family: str) -> None:
    model = make_model(family)
    layer = open_decoder(model).layers[1]
    adders = found(model)
    stream, products = ResidualStream(layer, adders), dict[str, Tensor]()
    given: list[Tensor] = []
    layer.register_forward_pre_hook(
        lambda _, args, kwargs: given.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    outputs: list[Any] = []
    layer.register_forward_hook(lambda _, args, output: outputs.append(output))
    for name in adders:
        linears(layer)[name].register_forward_hook(lambda _, args, y, name=name: products.update({name: y}))
    with in_window(3), stream.watch(*adders):
        run_of(model)()
    first, second = (stream.take(name) for name in adders)
    assert first.keys() == second.keys() == {3}
    assert torch.equal(first[3], given[0])
    assert torch.equal(second[3], given[0] + products[adders[0]])
    output = outputs[0][0] if isinstance(outputs[0], tuple) else outputs[0]
    torch.testing.assert_close(second[3] + products[adders[1]], output)
    assert stream.take(adders[0]) == {}
