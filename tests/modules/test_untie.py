"""Zamba 2 has one transformer block in several layers."""

from pathlib import Path
from typing import Any

import torch
from transformers import Zamba2Config

from nestquant_cli.modules.attach import quantized_linears
from tests.families import VOCABULARY, from_config, load, logits, pack, random_ids, save_model


def zamba2() -> Any:
    config = Zamba2Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        num_hidden_layers=4,
        layers_block_type=["linear_attention", "hybrid"] * 2,
        hybrid_layer_ids=[1, 3],
        num_mem_blocks=1,
        intermediate_size=128,
        num_attention_heads=4,
        attention_hidden_size=128,
        attention_head_dim=32,
        n_mamba_heads=4,
        mamba_headdim=32,
        use_mamba_kernels=False,
        pad_token_id=1,
    )
    return from_config(config)


def test_a_shared_block_is_coded_in_each_place(
    tiny_tokenizer_folder: Path, tiny_text_file: Path, tmp_path: Path
) -> None:
    model = zamba2()
    blocks = [model.model.layers[index].shared_transformer for index in (1, 3)]
    assert blocks[0].self_attn.q_proj.weight is blocks[1].self_attn.q_proj.weight
    folder = save_model(model, tiny_tokenizer_folder, tmp_path / "model")
    packed = load(pack(folder, tiny_text_file, tmp_path / "packed", weight_bits=4, act_bits=16, kv_bits=16))
    names = [f"model.layers.{index}.shared_transformer.feed_forward.down_proj" for index in (1, 3)]
    one, other = (quantized_linears(packed)[name].words for name in names)
    assert not torch.equal(one, other)
    ids = random_ids(1, 20)
    before = logits(packed, ids)
    packed.tie_weights()
    assert torch.equal(logits(packed, ids), before)
    packed.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(load(tmp_path / "again"), ids), before)
