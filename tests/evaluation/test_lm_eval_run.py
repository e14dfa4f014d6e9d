"""lm-eval runs with a chat template, with settings of generation and with automatic batches as the options say."""

import dataclasses
import logging
from pathlib import Path

import pytest
import torch

from nestquant_cli.checkpoint.load import load_model
from nestquant_cli.evaluation.measure_tasks import TaskOptions, measure_tasks
from nestquant_cli.models.source import load_tokenizer, resolve

TASKS = Path(__file__).resolve().parents[1] / "tasks"


@pytest.fixture
def options(talking: Path) -> TaskOptions:
    return TaskOptions(str(talking), ("sample_piqa",), include_path=TASKS, device="cpu", limit=2, log_samples=True)


def test_prompts_go_through_the_chat_template(options: TaskOptions) -> None:
    report = measure_tasks(dataclasses.replace(options, chat_template=True, system_instruction="be brief"))
    (prompt, answer), _ = report.samples[0]["arguments"]
    goal = report.samples[0]["doc"]["goal"]
    assert prompt == f"s: be brief\nu: Question: {goal}\nAnswer:\na: "
    source = resolve(options.model)
    model, tokenizer = load_model(source), load_tokenizer(source)
    start, ids = len(tokenizer(prompt.rstrip()).input_ids), tokenizer(prompt + answer).input_ids  # as lm-eval cuts them
    with torch.no_grad():
        scores = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(dim=-1)
    by_hand = sum(scores[place - 1, ids[place]].item() for place in range(start, len(ids)))
    assert report.samples[0]["resps"][0][0][0] == pytest.approx(by_hand, rel=1e-5)
    assert report.how == (
        "chat template 'default', few-shot examples as turns, system instruction 'be brief', batch size 1"
    )
    protocol = report.protocol
    assert protocol["chat_template"]["name"] == "default" and protocol["system_instruction"] == "be brief"


def test_examples_are_turns_or_one_message(options: TaskOptions) -> None:
    few = dataclasses.replace(options, tasks=("sample_generate",), chat_template=True, num_fewshot=1, limit=1)
    as_turns, as_one = (
        measure_tasks(dataclasses.replace(few, fewshot_as_multiturn=turns)).samples[0]["arguments"][0][0]
        for turns in (None, False)
    )
    assert (as_turns.count("u: "), as_turns.count("a: ")) == (2, 2)
    assert (as_one.count("u: "), as_one.count("a: ")) == (1, 1)
    assert as_turns.count("Goal:") == as_one.count("Goal:") == 2


def test_settings_of_generation_win_over_the_task(options: TaskOptions, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "nestquant")
    texts = []
    for settings in (None, "max_gen_toks=2,until=@"):
        report = measure_tasks(dataclasses.replace(options, tasks=("sample_generate",), gen_kwargs=settings))
        texts.append(report.samples[0]["resps"][0][0])
        assert report.samples[0]["arguments"][0][1]["max_gen_toks"] == (2 if settings else 6)
    assert 0 < len(texts[1]) < len(texts[0])
    assert report.protocol["gen_kwargs"] == {"max_gen_toks": 2, "until": "@"}
    assert report.how == "without chat template, batch size 1, generation with max_gen_toks=2, until=@"
    assert "scores are without it" in caplog.text
    assert "can run Python code of their own (!function in local_arc_easy.yaml and 3 more)" in caplog.text


def test_a_cut_prompt_is_reported_once(options: TaskOptions, caplog: pytest.LogCaptureFixture) -> None:
    cut = dataclasses.replace(options, tasks=("sample_generate",), gen_kwargs="max_gen_toks=250")
    measure_tasks(cut)
    (message,) = [
        each.message for each in caplog.records if each.name == "nestquant" and each.levelno == logging.WARNING
    ]
    assert "Left truncation applied" in message and "(and 1 more such)" in message


def test_an_automatic_batch_scores_the_same(options: TaskOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = measure_tasks(options)
    for free, size in ((1 << 40, 64), (1, 1)):
        monkeypatch.setattr("nestquant_cli.evaluation.lm_eval_model.free_memory", lambda device, free=free: free)
        report = measure_tasks(dataclasses.replace(options, batch_size="auto:9"))
        assert set(report.protocol["batch_sizes"]) == {size} and report.how.endswith(f"batch size auto:9 ({size})")
        assert report.results["sample_piqa"]["acc,none"] == alone.results["sample_piqa"]["acc,none"]
