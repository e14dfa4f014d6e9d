"""Runs a vLLM engine on a checkpoint and prints, as the last line, what it says of some token ids.

It is a process of its own: after a model has run, vLLM's CPU worker does not start again in the same process.
"""

import json
import os
import sys
from typing import Any


def main(folder: str, settings: dict[str, Any], prompts: list[list[int]], tokens: int) -> None:
    """Prints JSON: for each prompt its "prompt" log-probabilities and the greedy "tokens" that follow."""
    from vllm import LLM, SamplingParams

    engine = LLM(folder, max_model_len=128, max_num_seqs=4, disable_log_stats=True, **settings)
    sampling = SamplingParams(temperature=0, max_tokens=tokens, prompt_logprobs=0, ignore_eos=True)
    answers = []
    for ids, output in zip(
        prompts, engine.generate([{"prompt_token_ids": ids} for ids in prompts], sampling), strict=True
    ):
        scores = [said[token].logprob for said, token in zip(output.prompt_logprobs[1:], ids[1:], strict=True)]
        answers.append({"prompt": scores, "tokens": list(output.outputs[0].token_ids)})
    print(json.dumps(answers))


if __name__ == "__main__":
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    main(sys.argv[1], *json.loads(sys.argv[2]))
