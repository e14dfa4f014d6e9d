"""Generated tasks are ordinary tasks of lm-eval: prompts, answers, gates, templates, and a local task wins."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from nestquant_cli.evaluation.generated.arithmetic import SHOTS
from nestquant_cli.evaluation.generated.definitions import ARITHMETIC, GENERATED, NEEDLE, Making
from nestquant_cli.evaluation.measure_tasks import TaskOptions, TaskReport, measure_tasks
from nestquant_cli.evaluation.task_definitions import load_tasks
from nestquant_cli.models.source import load_tokenizer, resolve

TASKS = Path(__file__).resolve().parents[2] / "tasks"
TOKENS = 1000


@pytest.fixture(scope="module")
def model(talking: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a chat template, whose context holds the facts."""
    folder = Path(shutil.copytree(talking, tmp_path_factory.mktemp("long") / "tiny"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2048}))
    return folder


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(resolve(str(model)))


@pytest.fixture
def options(model: Path) -> TaskOptions:
    return TaskOptions(str(model), GENERATED, limit=4, needle_tokens=TOKENS, device="cpu")


def first_item(report: TaskReport, task: str) -> dict[str, Any]:
    return next(item for item in report.samples if item["task"] == task)


def prompt_of(item: dict[str, Any]) -> str:
    return str(item["arguments"][0][0])


def test_they_run_without_a_folder_and_have_errors_and_gates(options: TaskOptions) -> None:
    report = measure_tasks(dataclasses.replace(options, fail_below=("needle=0.9", "arithmetic_steps=0")))
    assert set(report.results) == set(GENERATED)
    assert [verdict.passed for verdict in report.verdicts] == [False, True]
    for task, metric in ((NEEDLE, "exact_match,number"), (ARITHMETIC, "acc,none")):
        assert 0 <= report.results[task][metric] <= 1
        stem, _, kind = metric.partition(",")
        assert report.results[task][f"{stem}_stderr,{kind}"] is not None
    assert report.protocol["needle"] == {"tokens": TOKENS, "depth": None}
    assert report.protocol["num_fewshot"] == {NEEDLE: 0, ARITHMETIC: SHOTS}


def test_prompts_of_the_needle_are_as_long_as_asked(options: TaskOptions, tokenizer: PreTrainedTokenizerBase) -> None:
    item = first_item(measure_tasks(dataclasses.replace(options, tasks=(NEEDLE,), log_samples=True)), NEEDLE)
    prompt = prompt_of(item)
    assert TOKENS - 60 < len(tokenizer(prompt).input_ids) == item["doc"]["tokens"] <= TOKENS
    assert prompt.endswith(f"Answer: The secret number of {item['doc']['city']} is")
    assert item["target"] == item["doc"]["answer"]


def test_a_chat_template_goes_round_the_question(options: TaskOptions) -> None:
    report = measure_tasks(dataclasses.replace(options, chat_template=True, log_samples=True))
    prompt, city = prompt_of(first_item(report, NEEDLE)), first_item(report, NEEDLE)["doc"]["city"]
    assert prompt.endswith(f"The secret number of {city} is")
    assert "Answer: The secret" not in prompt
    assert first_item(report, ARITHMETIC)["doc"]["question"] in prompt_of(first_item(report, ARITHMETIC))


def test_a_right_answer_counts_whatever_stands_around_it(tokenizer: PreTrainedTokenizerBase) -> None:
    task = load_tasks([NEEDLE], None, Making(tokenizer, needle_tokens=TOKENS))[NEEDLE]
    document = next(iter(task.test_docs()))
    number = next(each for each in task._filters if each.name == "number")
    for answer, right in (
        (f" {document['answer']}.", 1),
        (f": {document['answer']}, or 1", 1),
        (" none", 0),
        (" 1", 0),
    ):
        from lm_eval.api.instance import Instance

        request = Instance("generate_until", document, ("", {}), 0)
        request.resps = [answer]
        number.apply([request])
        assert task.process_results(document, [request.filtered_resps["number"]])["exact_match"] == right


def test_the_seed_chooses_the_items(options: TaskOptions) -> None:
    def questions(seed: int) -> list[str]:
        chosen = dataclasses.replace(options, tasks=(ARITHMETIC,), needle_tokens=None, log_samples=True, seed=seed)
        return [str(item["doc"]["question"]) for item in measure_tasks(chosen).samples]

    assert questions(0) == questions(0) != questions(1)


def test_a_local_task_of_the_same_name_wins(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    data = f"dataset_kwargs:\n  file: piqa.jsonl\n  folder: {TASKS / 'data'}\n"
    (tmp_path / "mine.yaml").write_text(f"include: {TASKS / 'local_piqa.yaml'}\ntask: {NEEDLE}\n{data}")
    loaded = load_tasks([NEEDLE, ARITHMETIC], tmp_path, Making(tokenizer))
    assert loaded[NEEDLE].get_config("output_type") == "multiple_choice"
    assert list(loaded) == [NEEDLE, ARITHMETIC]
