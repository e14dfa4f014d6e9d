"""Local tasks run through lm-eval from any folder, as its own tasks would, and bad names are refused early."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.checkpoint.load import load_model
from nestquant_cli.evaluation.lm_eval_run import Settings, run_tasks
from nestquant_cli.evaluation.measure_tasks import TaskOptions, measure_tasks
from nestquant_cli.evaluation.task_definitions import load_tasks
from nestquant_cli.models.source import load_tokenizer, resolve
from tests.families import in_process

TASKS = Path(__file__).resolve().parents[1] / "tasks"
SAMPLES = ("sample_piqa", "sample_arc_easy", "sample_winogrande")


@pytest.fixture
def options(tiny_model_folder: Path) -> TaskOptions:
    return TaskOptions(str(tiny_model_folder), SAMPLES, include_path=TASKS, batch_size=3, device="cpu")


def test_local_tasks_run_from_any_folder(options: TaskOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    report = measure_tasks(dataclasses.replace(options, fail_below=("sample_piqa=0", "sample_arc_easy.acc_norm=1.5")))
    assert set(report.results) == set(SAMPLES)
    assert report.results["sample_piqa"]["acc,none"] in (0, 0.25, 0.5, 0.75, 1)
    assert "acc_norm,none" in report.results["sample_arc_easy"]
    assert all(f"|{task}" in report.table for task in SAMPLES)
    failed = [verdict.figures for verdict in report.verdicts if not verdict.passed]
    assert failed == report.as_json()["failed_gates"] and len(failed) == 1 and "sample_arc_easy acc_norm" in failed[0]
    assert report.protocol["seed"] == {"random": 0, "numpy": 0, "torch": 0, "fewshot": 0}
    assert "lm_eval" in report.protocol["versions"]
    json.dumps(report.as_json(), allow_nan=False)


def test_accuracy_equals_a_computation_by_hand(options: TaskOptions) -> None:
    source = resolve(options.model)
    model, tokenizer = load_model(source), load_tokenizer(source)
    items = [json.loads(line) for line in (TASKS / "data" / "piqa.jsonl").read_text().splitlines()]

    def likelihood(prompt: str, answer: str) -> float:
        start, ids = len(tokenizer(prompt).input_ids), tokenizer(prompt + answer).input_ids
        with torch.no_grad():
            scores = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(dim=-1)
        return sum(scores[place - 1, ids[place]].item() for place in range(start, len(ids)))

    right = 0
    for item in items:
        choices = [likelihood(f"Question: {item['goal']}\nAnswer:", " " + item[name]) for name in ("sol1", "sol2")]
        right += choices.index(max(choices)) == item["label"]
    report = measure_tasks(dataclasses.replace(options, tasks=("sample_piqa",)))
    assert report.results["sample_piqa"]["acc,none"] == right / len(items)


def test_one_item_has_no_standard_error_and_stays_valid_json(options: TaskOptions) -> None:
    report = measure_tasks(dataclasses.replace(options, tasks=("sample_piqa",), limit=1, num_fewshot=1))
    assert report.protocol["num_fewshot"] == {"sample_piqa": 1}
    assert report.protocol["samples"]["sample_piqa"]["effective"] == 1
    json.dumps(report.as_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "./nowhere"}, "does not exist"),
        ({"tasks": ()}, "--tasks is empty"),
        ({"limit": 1.5}, "--limit 1.5"),
        ({"limit": 0.0}, "--limit 0"),
        ({"num_fewshot": -1}, "--num-fewshot -1"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"batch_size": "auto:0"}, "--batch-size auto:0"),
        ({"batch_size": "all"}, "--batch-size all"),
        ({"chat_template": True}, "no chat template; .*leave out --apply-chat-template"),
        ({"fewshot_as_multiturn": True}, "add --apply-chat-template"),
        ({"gen_kwargs": "temperature=1"}, "no task generates text"),
        ({"include_path": Path("nowhere")}, "--include-path nowhere is not a folder"),
        ({"fail_below": ("sample_piqa=x",)}, "cannot be read"),
        ({"fail_below": ("piqa=0.5",)}, "not in --tasks"),
        ({"fail_below": ("sample_piqa.f1=0.5",)}, "no metric 'f1'"),
    ],
)
def test_bad_input_is_refused(options: TaskOptions, change: dict[str, object], message: str) -> None:
    with pytest.raises(NestQuantError, match=message):
        measure_tasks(dataclasses.replace(options, **change))  # type: ignore[arg-type]


def test_logits_that_are_not_finite_are_no_wrong_answers(options: TaskOptions) -> None:
    source = resolve(options.model)
    model = load_model(source)
    model.get_input_embeddings().weight.data[:] = math.nan
    tasks = list(load_tasks(["sample_piqa"], TASKS).values())
    with pytest.raises(NestQuantError, match="NaN or infinite"):
        run_tasks(model, load_tokenizer(source), tasks, Settings())


def test_the_gate_fails_after_the_report_is_written(
    options: TaskOptions, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "tasks.json"
    words = ["eval-tasks", options.model, "--tasks", "sample_piqa,sample_winogrande", "--include-path", TASKS]
    words += ["--output", output, "--fail-below", "sample_piqa=1.1", "--device", "cpu"]
    code, printed, _ = in_process(capfd, monkeypatch)(*words)
    assert code == 1
    assert "gate failed: sample_piqa acc" in printed and "|sample_winogrande" in printed
    assert set(json.loads(output.read_text())["results"]) == {"sample_piqa", "sample_winogrande"}
