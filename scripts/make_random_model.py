"""Writes a model of any architecture with random bfloat16 weights, shard by shard, in the names that the Hub has.

    python scripts/make_random_model.py build/moe model_type=qwen3_moe hidden_size=2048 num_hidden_layers=2 \\
        num_attention_heads=32 num_key_value_heads=4 head_dim=128 num_experts=128 num_experts_per_tok=8 \\
        moe_intermediate_size=768 norm_topk_prob=true vocab_size=512

Settings of the configuration are given as name=value, the value in JSON or as plain text; --config reads them from a
config.json first. Weights are drawn tensor by tensor, so that the script needs the memory of one tensor. The model gets
a byte-level tokenizer. Its text is meaningless; it serves to measure memory and time.
"""

import argparse
import json
import math
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.core_model_loading import revert_weight_conversion

from nestquant_cli.models.shard_writer import write_shard
from nestquant_cli.models.size_limits import meta_model

if TYPE_CHECKING:
    from scripts.make_model import save_tokenizer
else:  # the script's own folder is on the path of a script that is run
    from make_model import save_tokenizer

SHARD = 1 << 30  # bytes


def main() -> None:
    options = parse()
    given: dict[str, Any] = json.loads(options.config.read_text()) if options.config else {}
    config = configuration(given | dict(map(setting, options.settings)))
    tensors = hub_tensors(config)
    folder: Path = options.folder
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    save_tokenizer(folder)
    write_weights(folder, tensors, options.seed)
    total = sum(tensor.numel() for tensor in tensors.values())
    print(f"{folder}: {total:,} parameters, {2 * total:,} bytes")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder to create")
    parser.add_argument("settings", nargs="*", metavar="NAME=VALUE", help="settings of the configuration")
    parser.add_argument("--config", type=Path, help="config.json to begin with")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def setting(text: str) -> tuple[str, Any]:
    """A setting of the command line: its name and its value."""
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def configuration(settings: dict[str, Any]) -> PretrainedConfig:
    """The configuration, with the class of the causal language model named."""
    chosen = {"bos_token_id": 0, "eos_token_id": 1} | settings
    kind: Any = CONFIG_MAPPING[chosen.pop("model_type")]
    config: PretrainedConfig = kind.from_dict(chosen | {"dtype": "bfloat16"})
    config.architectures = [type(meta_model(config)).__name__]
    return config


def hub_tensors(config: PretrainedConfig) -> dict[str, Tensor]:
    """The tensors of the model's files by name, on the meta device: those that save_pretrained would write."""
    model = meta_model(config, torch.bfloat16)
    tied = model.all_tied_weights_keys
    own = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    return {name: tensor.to(torch.bfloat16) for name, tensor in revert_weight_conversion(model, own).items()}


def write_weights(folder: Path, tensors: dict[str, Tensor], seed: int) -> None:
    """Writes the shards and their index."""
    shards: list[dict[str, Tensor]] = [{}]
    for name, tensor in tensors.items():
        if sum(each.nbytes for each in shards[-1].values()) + tensor.nbytes > SHARD and shards[-1]:
            shards.append({})
        shards[-1][name] = tensor
    places: dict[str, str] = {}
    for number, shard in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        write_shard(folder / file, shard, lambda name: (draw(tensors, seed, name),))
        places |= dict.fromkeys(shard, file)
        print(f"{number + 1}/{len(shards)}", file=sys.stderr)
    index = {"metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def draw(tensors: dict[str, Tensor], seed: int, name: str) -> Tensor:
    """A random tensor, the same for a name and a seed: matrices of small outputs, vectors near one or zero."""
    shape = tensors[name].shape
    generator = torch.Generator().manual_seed(seed * (1 << 32) + zlib.crc32(name.encode()))
    drawn = torch.randn(shape, generator=generator, dtype=torch.bfloat16)
    if len(shape) > 1:
        return drawn.mul_(1 / math.sqrt(shape[-1]))
    return drawn.mul_(0.02).add_(float(name.endswith("weight")))


if __name__ == "__main__":
    main()
