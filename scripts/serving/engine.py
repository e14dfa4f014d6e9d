"""Runs a vLLM engine on a checkpoint and prints, as the last line, what it says of some token ids.

    python scripts/serving/engine.py CKPT '[{"dtype": "float32"}, [[5, 7, 9]], 24]'

The second argument is a list: settings of vllm.LLM, prompts as token ids, how many tokens follow each. It is a process
of its own: after a model has run, vLLM's CPU worker does not start again in the same process.
"""

import json
import os
import sys
from typing import Any

SMALL = {"max_model_len": 128, "max_num_seqs": 4, "disable_log_stats": True}


def answers(folder: str, settings: dict[str, Any], prompts: list[list[int]], tokens: int) -> list[dict[str, Any]]:
    """What a new engine says of each prompt.

    Args:
        folder: of the checkpoint.
        settings: of vllm.LLM.
        prompts: token ids.
        tokens: how many follow each prompt.

    Returns:
        for each prompt: "prompt", log-probabilities of its tokens but for the first; "tokens", the greedy ones that
        follow; "chosen", their log-probabilities.
    """
    from vllm import LLM, SamplingParams

    engine = LLM(folder, **SMALL | settings)
    sampling = SamplingParams(temperature=0, max_tokens=tokens, prompt_logprobs=0, logprobs=0, ignore_eos=True)
    found = []
    outputs = engine.generate([{"prompt_token_ids": ids} for ids in prompts], sampling, use_tqdm=False)
    for ids, output in zip(prompts, outputs, strict=True):
        answer = output.outputs[0]
        own = list(answer.token_ids)
        given, chosen = zip(output.prompt_logprobs[1:], ids[1:], strict=True), zip(answer.logprobs, own, strict=True)
        scores = [[said[token].logprob for said, token in pairs] for pairs in (given, chosen)]
        found.append({"prompt": scores[0], "tokens": own, "chosen": scores[1]})
    return found


if __name__ == "__main__":
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    print(json.dumps(answers(sys.argv[1], *json.loads(sys.argv[2]))))
