"""Small matrices outside nn.Linear stay in 16 bits and are counted; large ones are refused by name."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GptOssConfig, MambaConfig, XLNetConfig

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.models.small_matrices import FEW, LARGEST, SHARE, Staying, refuse_stray_matrices, staying
from nestquant_cli.models.structure import open_decoder
from tests.families import CONFIGS, make_model


def on_meta(config: Any) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("family", CONFIGS)
def test_in_a_model_of_linears_alone_nothing_stays(family: str) -> None:
    model = make_model(family)
    decoder = open_decoder(model)
    refuse_stray_matrices(model, decoder)
    assert staying(decoder) == Staying((), 0.0)


def test_small_matrices_are_counted_by_kind() -> None:
    model = make_model("llama")
    decoder = open_decoder(model)
    for layer in decoder.layers:
        layer.mixing = nn.Conv1d(64, 64, 4, groups=64)  # type: ignore[assignment]
    decoder.layers[1].state = nn.Parameter(torch.zeros(128, 16))  # type: ignore[assignment]
    decoder.layers[1].gain = nn.Parameter(torch.zeros(5000))  # type: ignore[assignment] # a vector is as good as a norm
    refuse_stray_matrices(model, decoder)
    found = staying(decoder)
    assert [(kind.name, kind.shape, kind.layers) for kind in found.matrices] == [
        ("mixing.weight", (64, 1, 4), 2),
        ("state", (128, 16), 1),
    ]
    kept, coded = 2 * 256 + 2048, 2 * (64 * 64 * 2 + 64 * 32 * 2 + 64 * 128 * 3)
    assert found.share == kept / (kept + coded)


def test_a_large_matrix_is_refused_by_name() -> None:
    model = make_model("llama")
    decoder = open_decoder(model)
    decoder.layers[1].mixing = nn.Parameter(torch.zeros(64, FEW // 64 - 1))  # type: ignore[assignment]
    refuse_stray_matrices(model, decoder)
    decoder.layers[1].mixing = nn.Parameter(torch.zeros(64, FEW // 64))  # type: ignore[assignment]
    message = r"layers\.1\.mixing of LlamaForCausalLM is a matrix \(64, 64\) outside nn\.Linear, 10\.0 % of its layer"
    with pytest.raises(NestQuantError, match=message):
        refuse_stray_matrices(model, decoder)


@pytest.mark.parametrize(("matrices", "refused"), [(9, False), (10, True)])
def test_many_matrices_count_together(matrices: int, refused: bool) -> None:
    model = make_model("llama")
    decoder = open_decoder(model)
    layer = decoder.layers[0]
    layer.mlp.up_proj = nn.Linear(64, 11000, device="meta")  # type: ignore[union-attr]
    count = FEW * 9 / (FEW * 9 + sum(p.numel() for p in layer.parameters() if p.dim() > 1))
    assert SHARE * 0.9 < count < SHARE  # nine of the matrices are just below the share
    layer.each = nn.ParameterList([torch.zeros(64, FEW // 64)] * matrices)  # type: ignore[assignment]
    if refused:
        with pytest.raises(NestQuantError, match=r"each\.0"):
            refuse_stray_matrices(model, decoder)
    else:
        refuse_stray_matrices(model, decoder)


def test_no_matrix_of_many_entries_is_small() -> None:
    model = make_model("llama")
    decoder = open_decoder(model)
    decoder.layers[0].mlp.up_proj = nn.Linear(1 << 13, 1 << 13, device="meta")  # type: ignore[union-attr]
    decoder.layers[0].state = nn.Parameter(torch.zeros(2, LARGEST // 2))  # type: ignore[assignment]
    refuse_stray_matrices(model, decoder)
    decoder.layers[0].state = nn.Parameter(torch.zeros(2, LARGEST // 2 + 1))  # type: ignore[assignment]
    with pytest.raises(NestQuantError, match=r"layers\.0\.state"):
        refuse_stray_matrices(model, decoder)


def test_state_matrices_of_published_shapes_stay() -> None:
    model = on_meta(MambaConfig(num_hidden_layers=1))  # width 768, as state-spaces/mamba-130m
    decoder = open_decoder(model)
    refuse_stray_matrices(model, decoder)
    assert {kind.name for kind in staying(decoder).matrices} == {"mixer.A_log", "mixer.conv1d.weight"}


def test_biases_of_experts_are_vectors() -> None:
    sizes: dict[str, Any] = {"hidden_size": 64, "num_local_experts": 64, "num_hidden_layers": 1, "head_dim": 16}
    model = on_meta(GptOssConfig(**sizes, intermediate_size=128, num_attention_heads=4, num_key_value_heads=2))
    decoder = open_decoder(model)
    refuse_stray_matrices(model, decoder)  # gate_up_proj_bias (64, 256) has 16,384 entries
    names = [kind.name for kind in staying(decoder).matrices]
    assert names == ["mlp.router.weight", "mlp.experts.gate_up_proj_bias", "mlp.experts.down_proj_bias"]


def test_projections_that_are_parameters_are_refused() -> None:
    model = on_meta(XLNetConfig(d_model=256, n_layer=1, n_head=4, d_inner=512, vocab_size=64))
    with pytest.raises(NestQuantError, match=r"rel_attn\.q of XLNet.* outside nn\.Linear"):
        refuse_stray_matrices(model, open_decoder(model))
