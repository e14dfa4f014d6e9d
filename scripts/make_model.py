"""Writes a Llama with random bfloat16 weights, shard by shard, of any number of layers and any width.

    python scripts/make_model.py build/random-1b                  # 24 layers, 1.2 billion parameters, 2.5 GB
    python scripts/make_model.py build/random-2b --layers 48      # the same layers, twice as many

Weights are drawn tensor by tensor from a seed, so the script needs the memory of one shard. The model gets a byte-level
tokenizer. Its text is meaningless; it serves to measure memory and time.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from nestquant_cli.models.shard_writer import write_shard

ONES = ("layernorm.weight", "norm.weight")


def main() -> None:
    options = parse()
    config = LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.width,
        intermediate_size=options.inner,
        num_hidden_layers=options.layers,
        num_attention_heads=options.width // options.head,
        num_key_value_heads=max(1, options.width // options.head // 4),
        max_position_embeddings=4096,
        bos_token_id=0,
        eos_token_id=1,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    folder: Path = options.folder
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    save_tokenizer(folder)
    total = write_weights(folder, config, options.seed)
    print(f"{folder}: {total:,} parameters, {2 * total:,} bytes")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder to create")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=2048, help="size of the hidden states")
    parser.add_argument("--inner", type=int, default=5632, help="inner size of the feed-forward layers")
    parser.add_argument("--head", type=int, default=64, help="size of a head")
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def write_weights(folder: Path, config: LlamaConfig, seed: int) -> int:
    """Writes one shard per layer and one for the rest; returns the number of parameters."""
    groups = [layer_shapes(config, index) for index in range(config.num_hidden_layers)]
    groups.append(
        {
            "model.embed_tokens.weight": (config.vocab_size, config.hidden_size),
            "model.norm.weight": (config.hidden_size,),
            "lm_head.weight": (config.vocab_size, config.hidden_size),
        }
    )
    places: dict[str, str] = {}
    for number, shapes in enumerate(groups):
        name = f"model-{number + 1:05d}-of-{len(groups):05d}.safetensors"
        generator = torch.Generator().manual_seed(seed * 100_003 + number)
        tensors = {key: draw(key, shape, config, generator) for key, shape in shapes.items()}
        write_shard(folder / name, tensors)
        places |= dict.fromkeys(shapes, name)
        print(f"{number + 1}/{len(groups)}", file=sys.stderr)
    total = sum(math.prod(shape) for shapes in groups for shape in shapes.values())
    index = {"metadata": {"total_size": 2 * total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return total


def layer_shapes(config: LlamaConfig, index: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of one decoder layer by name."""
    width, inner = config.hidden_size, config.intermediate_size
    groups = config.num_key_value_heads or config.num_attention_heads
    heads = groups * (width // config.num_attention_heads)
    shapes: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj.weight": (width, width),
        "self_attn.k_proj.weight": (heads, width),
        "self_attn.v_proj.weight": (heads, width),
        "self_attn.o_proj.weight": (width, width),
        "mlp.gate_proj.weight": (inner, width),
        "mlp.up_proj.weight": (inner, width),
        "mlp.down_proj.weight": (width, inner),
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
    }
    return {f"model.layers.{index}.{name}": shape for name, shape in shapes.items()}


def draw(name: str, shape: tuple[int, ...], config: LlamaConfig, generator: torch.Generator) -> torch.Tensor:
    """A random tensor, scaled so that hidden states keep their size through the layers."""
    if name.endswith(ONES):
        return torch.ones(shape, dtype=torch.bfloat16)
    scale = shape[-1] ** -0.5
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        scale /= math.sqrt(2 * config.num_hidden_layers)
    return torch.randn(shape, generator=generator).mul_(scale).to(torch.bfloat16)


def save_tokenizer(folder: Path) -> None:
    """Writes a tokenizer with one token per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(["<s>", "</s>", *alphabet])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)


if __name__ == "__main__":
    main()
