"""Compares an export with the checkpoint it was made from: every integer and scale, and the perplexity.

python scripts/check_export.py CKPT EXPORT --dataset FILE.txt --windows 10

transformers and compressed-tensors load the export in a separate process, in which nestquant_cli cannot be imported.
The exit code is 1 if integers or scales differ, or if the perplexities differ by more than half a percent.
"""

import argparse
import hashlib
import importlib.abc
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

TOLERANCE = 0.005  # fraction of the perplexity


class Refuse(importlib.abc.MetaPathFinder):
    """An import finder that hides nestquant_cli, because the export must load without it."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        if fullname.split(".")[0] == "nestquant_cli":
            raise ImportError("an export is to be loaded without nestquant_cli")


def perplexity(model: Any, tokenizer: Any, text: str, seqlen: int, windows: int) -> float:
    """Perplexity by the protocol of eval-ppl: tokenized once, windows without overlap, float32 log-softmax."""
    import torch

    ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"])
    ids = ids[: len(ids) // seqlen * seqlen].view(-1, seqlen)[:windows]
    losses = []
    with torch.inference_mode():
        for window in ids:
            logits = model(input_ids=window[None], use_cache=False).logits[0, :-1].float()
            losses.append(torch.nn.functional.cross_entropy(logits, window[1:]).item())
    return math.exp(sum(losses) / len(losses))


def digest(integers: Any, scale: Any) -> str:
    """SHA-256 of an int8 matrix and its bfloat16 scales."""
    import torch

    assert (integers.dtype, scale.dtype) == (torch.int8, torch.bfloat16)
    data = integers.contiguous().numpy().tobytes() + scale.contiguous().view(torch.int16).numpy().tobytes()
    return hashlib.sha256(data).hexdigest()


def of_export(arguments: argparse.Namespace) -> dict[str, Any]:
    """Hashes and perplexity of the export, without code of this package."""
    sys.meta_path.insert(0, Refuse())
    import torch
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(arguments.export, dtype=arguments.dtype, trust_remote_code=True)
    stored = load_stored(arguments.export)
    hashes = {}
    for name, module in model.named_modules():
        if hasattr(module, "weight_packed"):
            bits = module.quantization_scheme.weights.num_bits
            integers = unpack_from_int32(module.weight_packed, bits, torch.Size(module.weight_shape.tolist()))
            hashes[name] = digest(integers, module.weight_scale.to(torch.bfloat16))
            assert torch.equal(stored[f"{name}.weight_scale"].float(), module.weight_scale.float()), name
    text = Path(arguments.dataset).read_text(encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(arguments.export)
    found = perplexity(model.eval(), tokenizer, text, arguments.seqlen, arguments.windows)
    assert not any(name.split(".")[0] == "nestquant_cli" for name in sys.modules)
    return {"hashes": hashes, "perplexity": found}


def load_stored(folder: str) -> dict[str, Any]:
    """All tensors of a folder of safetensors files."""
    from safetensors.torch import load_file

    return {name: tensor for path in Path(folder).glob("*.safetensors") for name, tensor in load_file(path).items()}


def of_checkpoint(arguments: argparse.Namespace) -> dict[str, Any]:
    """Hashes and perplexity of the packed checkpoint, by nestquant."""
    import torch

    from nestquant_cli.checkpoint.load import load_model
    from nestquant_cli.models.source import load_tokenizer, resolve
    from nestquant_cli.modules.attach import quantized_linears

    source = resolve(arguments.checkpoint)
    model = load_model(source, arguments.dtype)
    hashes = {
        name: digest(module.decoded()[:, : module.in_features], module.row_scale.view(torch.bfloat16))
        for name, module in quantized_linears(model).items()
    }
    text = Path(arguments.dataset).read_text(encoding="utf-8")
    found = perplexity(model, load_tokenizer(source), text, arguments.seqlen, arguments.windows)
    return {"hashes": hashes, "perplexity": found}


def main() -> int:
    """Compares the export with the checkpoint; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("export")
    parser.add_argument("--dataset", required=True, help="a text file")
    parser.add_argument("--seqlen", type=int, default=2048)
    parser.add_argument("--windows", type=int, default=10)
    parser.add_argument("--dtype", default="auto", help="dtype of both models: auto, bfloat16, float32")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        print(json.dumps(of_export(arguments)))
        return 0
    words = [sys.executable, __file__, *sys.argv[1:], "--alone"]
    other = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
    own = of_checkpoint(arguments)
    same = own["hashes"] == other["hashes"]
    apart = other["perplexity"] / own["perplexity"] - 1
    print(f"matrices: {len(own['hashes'])}, integers and scales {'equal to the bit' if same else 'NOT EQUAL'}")
    print(f"perplexity: packed {own['perplexity']:.4f}, export {other['perplexity']:.4f} ({apart:+.3%})")
    return 0 if same and abs(apart) <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
