"""Whatever asks for a quantization refuses the same models in the same words, before any weight is read."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BartConfig,
    BlenderbotConfig,
    LlamaConfig,
    PretrainedConfig,
    ReformerConfig,
    RwkvConfig,
    XLMConfig,
    XLNetConfig,
)

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.integrations.transformers.quantizer import NestQuantConfig
from nestquant_cli.models.size_limits import meta_model
from nestquant_cli.models.source import resolve
from nestquant_cli.pipeline.original_model import open_original
from nestquant_cli.pipeline.plan import make_plan
from nestquant_cli.pipeline.quantize import calibrate, quantize
from nestquant_cli.pipeline.recipe import Recipe
from nestquant_cli.storage.files import read_json, write_json
from tests.families import from_config, load, logits, pack, random_ids, save_model

GATED: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
DECODER: dict[str, Any] = {"vocab_size": 300, "d_model": 64, "decoder_layers": 2, "decoder_attention_heads": 4}
DECODER |= {"decoder_ffn_dim": 128, "is_encoder_decoder": False, "is_decoder": True, "pad_token_id": 1}
EIGHT = {"weight_bits": 8, "act_bits": 8, "kv_bits": 8}
KV = "keys and values cannot be quantized; quantize with --kv-bits 16"
# A model, and what is said of it at --bits 4; those of the first table work with --kv-bits 16, the remedy.
WEIGHTS_ONLY: dict[str, tuple[PretrainedConfig, str]] = {
    "head size": (LlamaConfig(**GATED, head_dim=12), f"the head size 12 is not a multiple of 8; {KV}"),
    "other depth": (
        BartConfig(**DECODER, encoder_layers=3),
        f"BartForCausalLM has 2 decoder layers, its configuration makes a cache of 3; {KV}",
    ),
}
REFUSED: dict[str, tuple[PretrainedConfig, str]] = {
    "two streams": (
        ReformerConfig(
            vocab_size=300,
            hidden_size=64,
            attention_head_size=16,
            num_attention_heads=4,
            attn_layers=["local", "local"],
            feed_forward_size=128,
            axial_pos_embds=False,
            is_decoder=True,
            local_attn_chunk_length=8,
        ),
        "reformer.encoder.layers.1 is given other hidden states than reformer.encoder.layers.0 returned",
    ),
    "parts of layers apart": (
        XLMConfig(vocab_size=300, emb_dim=64, n_layers=2, n_heads=4, causal=True),
        "transformer.attentions.1 is given other hidden states than transformer.attentions.0 returned",
    ),
    "halved between layers": (
        RwkvConfig(vocab_size=300, hidden_size=64, num_hidden_layers=4, rescale_every=2),
        "rwkv.blocks.2 is given other hidden states than rwkv.blocks.1 returned",
    ),
    "stray": (
        XLNetConfig(vocab_size=300, d_model=64, n_layer=2, n_head=4, d_inner=128),
        "transformer.layer.0.rel_attn.q of XLNetLMHeadModel is a matrix (64, 4, 16) outside nn.Linear",
    ),
}


@pytest.fixture
def without_weights(tiny_tokenizer_folder: Path, tmp_path: Path) -> Callable[[PretrainedConfig], Path]:
    """A folder with the configuration of a model, its tokenizer and no weights: who reads them fails."""

    def make(config: PretrainedConfig) -> Path:
        folder = Path(shutil.copytree(tiny_tokenizer_folder, tmp_path / "model"))
        config.architectures = [type(meta_model(config)).__name__]
        config.save_pretrained(folder)
        return folder

    return make


@pytest.mark.parametrize("kind", [*WEIGHTS_ONLY, *REFUSED])
def test_all_commands_refuse_before_weights_are_read(
    kind: str, without_weights: Callable[[PretrainedConfig], Path], tmp_path: Path
) -> None:
    config, told = (WEIGHTS_ONLY | REFUSED)[kind]
    source = resolve(str(without_weights(config)))
    for refusing in (
        lambda: make_plan(source, Recipe()),
        lambda: open_original(source, "cpu"),
        lambda: quantize(source, Recipe(), tmp_path / "packed", "cpu"),
        lambda: calibrate(source, Recipe(), tmp_path / "calibration", "cpu"),
    ):
        with pytest.raises(NestQuantError) as error:
            refusing()
        assert str(error.value).startswith(told)
    assert not (tmp_path / "packed").exists() and not (tmp_path / "calibration").exists()


@pytest.mark.parametrize("kind", [*WEIGHTS_ONLY, *REFUSED])
def test_a_quantization_while_loading_refuses_in_the_same_words(
    kind: str, tiny_tokenizer_folder: Path, tmp_path: Path
) -> None:
    config, told = (WEIGHTS_ONLY | REFUSED)[kind]
    folder = save_model(from_config(config), tiny_tokenizer_folder, tmp_path / "model")
    with pytest.raises(NestQuantError) as error:
        load(folder, quantization_config=NestQuantConfig(bits=4, act_bits=4, kv_bits=4))
    assert str(error.value).startswith(told)


@pytest.mark.parametrize("kind", WEIGHTS_ONLY)
def test_the_remedy_for_keys_and_values_works(
    kind: str, tiny_tokenizer_folder: Path, tiny_text_file: Path, tmp_path: Path
) -> None:
    folder = save_model(from_config(WEIGHTS_ONLY[kind][0]), tiny_tokenizer_folder, tmp_path / "model")
    plan = make_plan(resolve(str(folder)), Recipe(kv_bits=16))
    packed = pack(folder, tiny_text_file, tmp_path / "packed", kv_bits=16)
    assert plan.weights == weights_of(packed)
    load(packed)


def test_without_halving_a_deep_rwkv_works(tiny_tokenizer_folder: Path, tiny_text_file: Path, tmp_path: Path) -> None:
    """What halves hidden states every few layers divides weights, too, in the first forward, so it is refused; the
    remedy, a setting of config.json, leaves the model's answers as they are."""
    config = RwkvConfig(vocab_size=300, hidden_size=64, num_hidden_layers=12, rescale_every=6)
    folder, ids = tmp_path / "model", random_ids(1, 40)
    halved = logits(from_config(config), ids)
    config.rescale_every = 0
    original = from_config(config)
    torch.testing.assert_close(logits(original, ids), halved, rtol=1e-3, atol=1e-3)
    packed = pack(save_model(original, tiny_tokenizer_folder, folder), tiny_text_file, tmp_path / "w8", **EIGHT)
    found, expected = logits(load(packed), ids).log_softmax(-1), logits(original, ids).log_softmax(-1)
    assert (expected.exp() * (expected - found)).sum(-1).mean() < 0.001


def weights_of(packed: Path) -> int:
    """Entries of the matrices that a checkpoint has quantized."""
    linears = read_json(packed / "config.json")["quantization_config"]["layout"]["linears"]
    return sum(linear["out_features"] * linear["in_features"] for linear in linears.values())


def test_linears_that_are_never_called_are_counted_and_named_alike(
    tiny_tokenizer_folder: Path, tiny_text_file: Path, tmp_path: Path
) -> None:
    from nestquant_cli.checkpoint.inspect import inspect
    from nestquant_cli.checkpoint.verify import verify

    model = from_config(BlenderbotConfig(**DECODER, encoder_layers=2, max_position_embeddings=256))
    folder = save_model(model, tiny_tokenizer_folder, tmp_path / "model")
    plan = make_plan(resolve(str(folder)), Recipe())
    packed = pack(folder, tiny_text_file, tmp_path / "packed")
    assert plan.exact and plan.weights == weights_of(packed) == 2 * (4 * 64 * 64 + 2 * 64 * 128)
    names = {f"encoder_attn.{name}_proj.weight" for name in ("q", "k", "v", "out")}
    for stays in (
        plan.staying.to_dict(),
        read_json(packed / "quantization_report.json")["staying"],
        inspect(packed).staying.to_dict(),
        verify(packed).staying,
    ):
        assert (
            {kind["name"] for kind in stays["matrices"] if kind["uncalled"]}
            == names
            == {kind["name"] for kind in stays["matrices"]}
        )
        assert stays["share"] == pytest.approx(1 / 3)
    quantized = load(folder, quantization_config=NestQuantConfig(bits=4, act_bits=4, kv_bits=4))
    assert {kind["name"] for kind in quantized.hf_quantizer.report["staying"]["matrices"]} == names


def test_a_value_that_json_cannot_hold_is_found_at_the_start(tiny_model_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model_folder, tmp_path / "model"))
    write_json(folder / "generation_config.json", {"temperature": 0.5})
    text = (folder / "generation_config.json").read_text().replace("0.5", "Infinity")
    (folder / "generation_config.json").write_text(text)
    with pytest.raises(NestQuantError, match=r"temperature of generation_config\.json is Infinity"):
        open_original(resolve(str(folder)), "cpu")
