"""Runs a vLLM engine with a packed cache in several ways and prints a line of what it says of some token ids.

It is a process of its own, as vLLM's CPU worker starts once in a process.
"""

import json
import os
import sys
from typing import Any


def main(folder: str, settings: dict[str, Any], prompts: list[list[int]], tokens: int) -> None:
    """Prints JSON: "capacity" in tokens; answers to all prompts at once, in chunks, as "first", the same "again" with
    the prefixes there are, and "after" requests that were aborted; how often a request was "preempted" in all of it.
    An answer is its tokens and their log-probabilities. `settings` are of vllm.LLM.
    """
    from vllm import LLM, SamplingParams

    chosen: dict[str, Any] = {
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 256,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 16,
        "block_size": 32,
        "enable_prefix_caching": True,
        "disable_log_stats": False,
    }
    engine = LLM(folder, **chosen | settings)
    sampling = SamplingParams(temperature=0, max_tokens=tokens, logprobs=0, ignore_eos=True)

    def answers() -> list[dict[str, Any]]:
        found = []
        for output in engine.generate([{"prompt_token_ids": ids} for ids in prompts], sampling):
            (said,) = output.outputs
            scores = [at[token].logprob for at, token in zip(said.logprobs, said.token_ids, strict=True)]
            found.append({"tokens": list(said.token_ids), "scores": scores, "cached": output.num_cached_tokens})
        return found

    cache = engine.llm_engine.vllm_config.cache_config
    result: dict[str, Any] = {"capacity": cache.num_gpu_blocks * cache.block_size}
    result |= {"first": answers(), "again": answers()}
    for number, ids in enumerate(prompts):
        engine.llm_engine.add_request(f"lost {number}", {"prompt_token_ids": ids[::-1]}, sampling)
    for _ in range(5):
        engine.llm_engine.step()
    engine.llm_engine.abort_request([f"lost {number}" for number in range(len(prompts))])
    result["after"] = answers()
    counts = {metric.name: metric for metric in engine.get_metrics()}
    print(json.dumps(result | {"preempted": counts["vllm:num_preemptions"].value}))


if __name__ == "__main__":
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    main(sys.argv[1], *json.loads(sys.argv[2]))
