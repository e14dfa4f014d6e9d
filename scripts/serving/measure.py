"""Times one engine with one model in this process and those that it starts; bench_vllm.py runs it for each.

    python scripts/serving/measure.py '{"engine": "vllm", "model": "w4", "threads": 1, ...}'

The last line of the output is a JSON object with the fields of `Measured`.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import psutil

Generate = Callable[[list[list[int]], int], None]  # prompts, new tokens of each


@dataclass(frozen=True)
class Job:
    """What is measured.

    Attributes:
        engine: "vllm" or "transformers".
        model: a folder, packed or not.
        threads: of the computing process.
        prompt: tokens of a prompt.
        new: tokens that follow it.
        streams: numbers of prompts at the same time.
        repeats: how often each is run, after one run that is not counted.
        eager: without torch.compile, in vLLM.
    """

    engine: str
    model: str
    threads: int
    prompt: int
    new: int
    streams: list[int]
    repeats: int
    eager: bool


@dataclass
class Measured:
    """What was found.

    Attributes:
        start: seconds from the start of the process until the first token can be asked for.
        memory: bytes of the computing process alone, when all was run.
        prompts: by number of streams, seconds of each run for the prompts and one token: wall and processor.
        wholes: the same with all new tokens.
    """

    start: float
    memory: int = 0
    prompts: dict[int, list[tuple[float, float]]] = field(default_factory=dict)
    wholes: dict[int, list[tuple[float, float]]] = field(default_factory=dict)


def main() -> None:
    job = Job(**json.loads(sys.argv[1]))
    engine: Generate = (vllm_engine if job.engine == "vllm" else transformers_engine)(job)
    found = Measured(time.time() - psutil.Process().create_time())
    engine(prompts(job, 1), 1)
    for repeat in range(job.repeats + 1):
        for streams in job.streams:
            for new, into in ((1, found.prompts), (job.new, found.wholes)):
                seconds = timed(engine, prompts(job, streams), new)
                if repeat:
                    into.setdefault(streams, []).append(seconds)
    found.memory = computing_process().memory_full_info().uss
    print(json.dumps(asdict(found)), flush=True)
    os._exit(0)  # what the engine has started is ended by the caller


def prompts(job: Job, streams: int) -> list[list[int]]:
    """Random token ids, the same for every engine."""
    import torch

    generator = torch.Generator().manual_seed(streams)
    return torch.randint(10, 250, (streams, job.prompt), generator=generator).tolist()


def timed(engine: Generate, ids: list[list[int]], new: int) -> tuple[float, float]:
    """Seconds of a run, by the wall clock and of the processor in the process that computes."""
    before, start = processor_seconds(), time.perf_counter()
    engine(ids, new)
    wall, after = time.perf_counter() - start, processor_seconds()
    return wall, after[computing_process().pid] - before.get(computing_process().pid, 0)


def processor_seconds() -> dict[int, float]:
    """User and system seconds of this process and all below it, by process id."""
    own = psutil.Process()
    times = {process.pid: process.cpu_times() for process in [own, *own.children(recursive=True)]}
    return {number: each.user + each.system for number, each in times.items()}


def computing_process() -> psutil.Process:
    """The last of a chain of first children: vLLM's worker below its engine; this process where it has none.

    The engine and this process wait in a loop, so that the processor seconds of all together say little.
    """
    found = psutil.Process()
    while below := [each for each in found.children() if "resource_tracker" not in " ".join(each.cmdline())]:
        found = below[0]
    return found


def vllm_engine(job: Job) -> Generate:
    from vllm import LLM, SamplingParams

    llm = LLM(
        job.model,
        dtype="bfloat16",
        max_model_len=job.prompt + job.new,
        max_num_seqs=max(job.streams),
        enforce_eager=job.eager,
        enable_prefix_caching=False,
    )

    def generate(ids: list[list[int]], new: int) -> None:
        settings = SamplingParams(max_tokens=new, temperature=0, ignore_eos=True, detokenize=False)
        found = llm.generate([{"prompt_token_ids": each} for each in ids], settings, use_tqdm=False)
        assert [len(each.outputs[0].token_ids) for each in found] == [new] * len(ids)

    return generate


def transformers_engine(job: Job) -> Generate:
    import torch
    from transformers import AutoModelForCausalLM

    import nestquant_cli  # registers the format with transformers

    torch.set_num_threads(job.threads)
    model: Any = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.bfloat16).eval()
    model.generation_config.eos_token_id = None
    form = os.environ.get("NESTQUANT_RESIDENT", "auto")  # which vLLM's plugin alone reads by itself
    if form != "auto":
        nestquant_cli.set_resident(model, form)

    def generate(ids: list[list[int]], new: int) -> None:
        tokens = torch.tensor(ids)
        mask = torch.ones_like(tokens)
        with torch.inference_mode():
            found = model.generate(tokens, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=0)
        assert found.shape == (len(ids), job.prompt + new)

    return generate


if __name__ == "__main__":
    main()
