"""What becomes of the parts of a layer: coded, left in 16 bits, padded, or never called."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.checkpoint.read import read_layout
from nestquant_cli.modules.attach import quantized_linears
from tests.families import from_config, load, logits, make_model, pack, random_ids, relative_error, save_model

IDS = random_ids(2, 24)


@pytest.mark.parametrize(
    ("bits", "linears", "coded", "cached"),
    [((4, 16, 16), 14, False, False), ((16, 4, 16), 14, True, False), ((16, 16, 4), 0, False, True)],
    ids=["weights", "activations", "cache"],
)
def test_one_part_alone(
    tmp_path: Path,
    tiny_model_folder: Path,
    tiny_text_file: Path,
    bits: tuple[int, int, int],
    linears: int,
    coded: bool,
    cached: bool,
) -> None:
    settings = dict(zip(("weight_bits", "act_bits", "kv_bits"), bits, strict=True))
    folder = pack(tiny_model_folder, tiny_text_file, tmp_path / "packed", **settings)
    model, original = load(folder), load(tiny_model_folder)
    modules = quantized_linears(model)
    assert len(modules) == linears
    assert all((module.source.code is not None) == coded for module in modules.values())
    assert all(("words" in dict(module.named_buffers())) == (bits[0] < 16) for module in modules.values())
    layout = read_layout(folder)
    assert bool(layout.cache) == cached
    error = relative_error(logits(model, IDS), logits(original, IDS))
    assert 0 < error < 0.9
    cache = model(IDS, use_cache=True).past_key_values
    assert (type(cache).__name__ == "PackedCache") == cached


def test_a_linear_that_is_never_called_stays_as_it_is(
    tmp_path: Path, tiny_tokenizer_folder: Path, tiny_text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    create = LlamaDecoderLayer.__init__

    def with_idle(self: Any, *arguments: Any, **settings: Any) -> None:
        create(self, *arguments, **settings)
        self.idle = nn.Linear(64, 8)

    monkeypatch.setattr(LlamaDecoderLayer, "__init__", with_idle)
    folder = save_model(make_model("llama"), tiny_tokenizer_folder, tmp_path / "model")
    model = load(pack(folder, tiny_text_file, tmp_path / "packed"))
    assert torch.equal(model.model.layers[1].idle.weight, load(folder).model.layers[1].idle.weight)
    assert len(quantized_linears(model)) == 14


def test_widths_that_blocks_do_not_divide_are_padded(
    tmp_path: Path, tiny_tokenizer_folder: Path, tiny_text_file: Path
) -> None:
    sizes: dict[str, Any] = {
        "hidden_size": 60,
        "intermediate_size": 100,
        "num_attention_heads": 5,
        "num_hidden_layers": 1,
    }
    original = from_config(LlamaConfig(vocab_size=300, **sizes))
    folder = save_model(original, tiny_tokenizer_folder, tmp_path / "model")
    model = load(pack(folder, tiny_text_file, tmp_path / "packed", weight_bits=6, act_bits=6, kv_bits=16))
    assert relative_error(logits(model, IDS), logits(original, IDS)) < 0.1
    with pytest.raises(NestQuantError, match="head size 12 is not a multiple of 8"):
        pack(folder, tiny_text_file, tmp_path / "kv")
    assert not (tmp_path / "kv").exists()
