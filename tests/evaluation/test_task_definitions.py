"""Local tasks hold what the built-in ones hold, and a name that is wrong gets its neighbours."""

from pathlib import Path

import pytest

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.evaluation.task_definitions import load_tasks

TASKS = Path(__file__).resolve().parents[1] / "tasks"
SAMPLES = ("sample_piqa", "sample_arc_easy", "sample_winogrande")


def test_prompts_and_answers_are_those_of_the_built_in_tasks() -> None:
    tasks = load_tasks(SAMPLES, TASKS)
    piqa, arc, winogrande = (tasks[name] for name in SAMPLES)
    item = next(iter(piqa.validation_docs()))
    assert piqa.doc_to_text(item) == "Question: Keep a cut apple from turning brown.\nAnswer:"
    assert piqa.doc_to_choice(item)[piqa.doc_to_target(item)] == "Brush the cut side with lemon juice."
    item = next(iter(arc.validation_docs()))
    assert arc.doc_to_choice(item)[arc.doc_to_target(item)] == "an ice cube"
    item = next(iter(winogrande.validation_docs()))
    assert winogrande.doc_to_choice(item)[winogrande.doc_to_text(item)].endswith("because the box")
    assert winogrande.doc_to_target(item) == "was too wide."


@pytest.mark.parametrize(
    ("name", "items", "choices"),
    [("local_piqa", 1838, {2}), ("local_arc_easy", 2376, {3, 4, 5}), ("local_winogrande", 1267, {2})],
)
def test_the_shared_data_is_read_whole(shared_data: Path, name: str, items: int, choices: set[int]) -> None:
    task = load_tasks([name], TASKS)[name]
    documents = list(task.validation_docs())
    assert len(documents) == items
    assert {len(task.doc_to_choice(document)) for document in documents} <= choices


def test_missing_data_of_a_task_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        f"include: {TASKS / 'local_piqa.yaml'}\ntask: mine\ndataset_kwargs:\n  file: no.jsonl\n  folder: {tmp_path}\n"
    )
    with pytest.raises(NestQuantError, match=r"task mine cannot be loaded .*no\.jsonl does not exist"):
        load_tasks(["mine"], tmp_path)


@pytest.mark.slow
def test_an_unknown_task_names_its_neighbours() -> None:
    with pytest.raises(NestQuantError, match=r"there is no task 'local_piqua'; .*did you mean 'local_piqa'"):
        load_tasks(["local_piqua"], TASKS)
