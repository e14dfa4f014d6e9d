"""The last step of `make demo`: loads a packed checkpoint with transformers and generates a few words.

Usage: python scripts/demo.py build/demo ["The capital of France is"]
"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer

import nestquant_cli  # noqa: F401  (registers the format with transformers)

TOKENS = 32


def main(path: str, prompt: str = "The capital of France is") -> None:
    """Prints `prompt` and the greedy continuation by the packed model in `path`, word by word."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
    print(f"{path} continues:")
    with torch.inference_mode():
        model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False, streamer=TextStreamer(tokenizer))


if __name__ == "__main__":
    main(*sys.argv[1:])
