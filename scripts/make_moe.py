"""Makes a mixture of experts of known quality out of a dense Llama: the same function, computed by experts.

    python scripts/make_moe.py demo build/moe-8                  # Mixtral: 8 experts, two for each token
    python scripts/make_moe.py demo build/moe-64 --kind parts    # Glm4Moe: 64 experts in 8 groups, 8 for each token
    python scripts/make_moe.py demo build/dense --kind dense     # the dense model itself, for comparison

`copies`: each expert is the dense MLP with its neurons in another order and small noise on its weights; the router
gives each token two experts, whose weights sum to 1. `parts`: a third of the neurons is in shared experts, the others
are divided over the 8 experts of a group, and each of the groups has its own order and noise; the router gives each
token one group, all of whose experts count fully. Routers are random directions of the whitened hidden states, without
their mean, so that all experts get about as many tokens. What quantization costs is the KL divergence to the model
that was made:

    nestquant quantize build/moe-8 --bits 4 --dataset demo --output build/moe-8-w4a4kv4
    nestquant eval-ppl build/moe-8-w4a4kv4 --baseline build/moe-8 --dataset demo
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Glm4MoeConfig, MixtralConfig, PretrainedConfig

from nestquant_cli.models.source import resolve
from nestquant_cli.pipeline.calibration_windows import read_windows
from nestquant_cli.pipeline.original_model import open_original
from nestquant_cli.pipeline.recipe import Recipe

GROUP = 8  # experts that divide the neurons of a group
SHARED = 4  # parts of the same size that are in shared experts


def main() -> None:
    """Makes the model, writes it with the tokenizer, and prints how far it is from the dense one."""
    options = parse()
    torch.manual_seed(options.seed)
    original = open_original(resolve(options.model), "cpu", "bfloat16")
    dense: Any = AutoModelForCausalLM.from_config(original.weights.model.config, dtype=torch.bfloat16).eval()
    dense.load_state_dict({name: original.weights.fetch(name) for name in dense.state_dict()})
    if options.layers:
        del dense.model.layers[options.layers :]
        dense.config.num_hidden_layers = options.layers
    windows = read_windows(original, Recipe(dataset=options.dataset, samples=4, seqlen=512)).ids
    made = dense if options.kind == "dense" else to_experts(dense, options, windows)
    made.save_pretrained(options.folder)
    original.tokenizer.save_pretrained(options.folder)
    with torch.inference_mode():
        wanted, found = (model(input_ids=windows[:1]).logits.float().log_softmax(-1) for model in (dense, made))
    divergence = float((wanted.exp() * (wanted - found)).sum(-1).mean())
    print(f"{options.folder}: KL divergence from the dense model {divergence:.5f} on {windows.shape[1]} tokens")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a Llama: demo, a folder, a GGUF file or a repository of the Hub")
    parser.add_argument("folder", type=Path, help="folder to create")
    parser.add_argument("--kind", choices=["copies", "parts", "dense"], default="copies")
    parser.add_argument("--experts", type=int, help="number of experts; 8 copies, or 64 parts in groups of 8")
    parser.add_argument("--layers", type=int, help="number of layers that are kept; all of them if not given")
    parser.add_argument("--noise", type=float, default=0.01, help="noise on each expert's weights, of their size")
    parser.add_argument("--dataset", default="demo", help="text that balances the routers")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


@torch.inference_mode()
def to_experts(dense: Any, options: argparse.Namespace, windows: Tensor) -> Any:
    """A model with experts that computes what `dense` does, but for the noise."""
    copies = options.kind == "copies"
    experts = options.experts or (8 if copies else 64)
    config = mixtral(dense.config, experts) if copies else glm(dense.config, experts)
    made: Any = AutoModelForCausalLM.from_config(config, dtype=dense.dtype).eval()
    inputs = mlp_inputs(dense, windows)
    for index, (layer, origin) in enumerate(zip(made.model.layers, dense.model.layers, strict=True)):
        fill = fill_copies if copies else fill_parts
        fill(layer.mlp, origin.mlp, inputs[index], options.noise)
        rest = {name: tensor for name, tensor in origin.state_dict().items() if not name.startswith("mlp.")}
        layer.load_state_dict(rest, strict=False)
    for name in ("embed_tokens", "norm"):
        getattr(made.model, name).load_state_dict(getattr(dense.model, name).state_dict())
    made.lm_head.load_state_dict(dense.lm_head.state_dict())
    return made


def common(config: PretrainedConfig) -> dict[str, Any]:
    """Settings of a Llama that all of its kin have."""
    names = [
        *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
        *("rms_norm_eps", "max_position_embeddings", "tie_word_embeddings", "hidden_act"),
        *("bos_token_id", "eos_token_id", "pad_token_id"),
    ]
    return {name: getattr(config, name) for name in names}


def mixtral(config: Any, experts: int) -> PretrainedConfig:
    """A Mixtral of a Llama's sizes."""
    rope, inner = dict(config.rope_parameters), config.intermediate_size
    sizes: dict[str, Any] = {"intermediate_size": inner, "num_local_experts": experts, "num_experts_per_tok": 2}
    return MixtralConfig(**common(config), **sizes, rope_parameters=rope, sliding_window=None)


def glm(config: Any, experts: int) -> PretrainedConfig:
    """A Glm4Moe of a Llama's sizes, without dense layers; each token gets all experts of one group."""
    part, left = divmod(config.intermediate_size, GROUP + SHARED)
    if left or experts % GROUP:
        raise SystemExit(f"{config.intermediate_size} neurons or {experts} experts cannot be divided")
    rope = dict(config.rope_parameters) | {"partial_rotary_factor": 1.0}
    sizes: dict[str, Any] = {"n_routed_experts": experts, "num_experts_per_tok": GROUP, "n_group": experts // GROUP}
    sizes |= {"moe_intermediate_size": part, "n_shared_experts": SHARED, "intermediate_size": config.intermediate_size}
    sizes |= {"topk_group": 1, "first_k_dense_replace": 0, "routed_scaling_factor": float(GROUP), "num_mtp_layers": 0}
    return Glm4MoeConfig(**common(config), **sizes, rope_parameters=rope)


def mlp_inputs(dense: Any, windows: Tensor) -> list[Tensor]:
    """What the MLP of each layer is given on the windows, (tokens, width) float32."""
    seen: list[list[Tensor]] = [[] for _ in dense.model.layers]

    def watch(own: list[Tensor]) -> Callable[..., None]:
        return lambda _, args: own.append(args[0][0].float())

    handles = [
        layer.mlp.register_forward_pre_hook(watch(own)) for layer, own in zip(dense.model.layers, seen, strict=True)
    ]
    for window in windows:
        dense.model(input_ids=window[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return [torch.cat(own) for own in seen]


def directions(x: Tensor, count: int) -> Tensor:
    """`count` rows of a router for inputs x (tokens, n): random, of unit variance, and without the inputs' mean."""
    mean = x.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(x.t()) + 1e-3 * x.var(0).mean() * torch.eye(x.shape[1]))
    rows = torch.randn(count, x.shape[1]) @ (vectors * values.rsqrt()) @ vectors.t()
    rows -= (rows @ mean)[:, None] * mean / mean.square().sum()
    return rows / (x @ rows.t()).std(0)[:, None]


def shuffled(mlp: nn.Module, neurons: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """gate_up (2·neurons, width) and down (width, neurons) of some neurons of a dense MLP, with noise."""
    gate, up, down = (getattr(mlp, f"{name}_proj").weight for name in ("gate", "up", "down"))

    def noisy(weight: Tensor) -> Tensor:
        wide = weight.float()
        return (wide + noise * wide.square().mean().sqrt() * torch.randn_like(wide)).to(weight.dtype)

    return noisy(torch.cat([gate[neurons], up[neurons]])), noisy(down[:, neurons])


def fill_copies(mlp: Any, origin: Any, x: Tensor, noise: float) -> None:
    """Makes each expert of a Mixtral's block a copy of the dense MLP."""
    for expert in range(len(mlp.experts.down_proj)):
        neurons = torch.randperm(origin.down_proj.in_features)
        mlp.experts.gate_up_proj[expert], mlp.experts.down_proj[expert] = shuffled(origin, neurons, noise)
    mlp.gate.weight.copy_(directions(x, len(mlp.gate.weight)))


def fill_parts(mlp: Any, origin: Any, x: Tensor, noise: float) -> None:
    """Divides the neurons of the dense MLP over shared experts and the experts of each group of a Glm4Moe's block."""
    part, groups = mlp.experts.down_proj.shape[2], len(mlp.experts.down_proj) // GROUP
    order = torch.randperm(origin.down_proj.in_features)
    shared, routed = order[: SHARED * part], order[SHARED * part :]
    gate_up, mlp.shared_experts.down_proj.weight.data = shuffled(origin, shared, 0.0)
    mlp.shared_experts.gate_proj.weight.data, mlp.shared_experts.up_proj.weight.data = gate_up.chunk(2)
    for group in range(groups):
        for number, neurons in enumerate(routed[torch.randperm(len(routed))].split(part)):
            expert = group * GROUP + number
            mlp.experts.gate_up_proj[expert], mlp.experts.down_proj[expert] = shuffled(origin, neurons, noise)
    mlp.gate.weight.copy_(directions(x, groups).repeat_interleave(GROUP, 0))


if __name__ == "__main__":
    main()
