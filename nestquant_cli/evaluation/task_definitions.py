"""Loads lm-eval tasks by name, from local files or generated, with their data."""

import logging
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..base.errors import NestQuantError
from ..base.names import nearest
from ..models.hub import cache_only_when_unreachable, reason_of
from .gates import NOT_EVALUATED
from .generated.definitions import GENERATED, Making, make_task

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger("nestquant")

_CALL = re.compile(r"^[^#\n]*!function\b", re.MULTILINE)


def load_tasks(
    names: Sequence[str], include_path: "Path | None" = None, making: Making | None = None
) -> dict[str, Any]:
    """Loads tasks and groups with their data.

    Args:
        names: names of tasks, groups or tags, or patterns such as "mmlu_*".
        include_path: folder with further task YAML files. A task of its own wins over a generated one of its name.
        making: what generated tasks are made from; None where none may be asked for.

    Returns:
        lm-eval's task and group objects by name.

    Raises:
        NestQuantError: no such task (the remedy has the nearest names), a wrong definition, data that cannot be read,
            or a task that runs code of the model or needs images or sound.
    """
    if include_path is not None and not include_path.is_dir():
        raise NestQuantError(f"--include-path {include_path} is not a folder", NOT_EVALUATED, "check the path")
    local = _local(include_path)
    generated = [name for name in names if making is not None and name in GENERATED and name not in _names(local)]
    others = [name for name in names if name not in generated]
    manager = _manager(others, include_path, local) if others else None
    if include_path is not None and (files := files_with_code(include_path)):
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        logger.info(
            "the tasks of %s can run Python code of their own (!function in %s%s)", include_path, files[0], more
        )
    loaded: dict[str, Any] = {}
    for name in names:
        if making is not None and name in generated:
            loaded[name] = make_task(name, making)
            continue
        for match in _matches(manager, name):
            loaded |= _load(manager, match)
    return loaded


def files_with_code(folder: "Path") -> list[str]:
    """Names of the YAML files in a folder and its subfolders that call Python functions (`!function`)."""
    paths = (path for path in sorted(folder.rglob("*.yaml")) if path.is_file())
    return [path.name for path in paths if _CALL.search(path.read_text(encoding="utf-8", errors="replace"))]


def _local(include_path: "Path | None") -> Any:
    """lm-eval's list of the tasks of a folder alone; None without a folder."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(include_path), include_defaults=False) if include_path is not None else None


def _names(manager: Any) -> set[str]:
    return set(manager.all_subtasks) if manager is not None else set()


def _manager(names: Sequence[str], include_path: "Path | None", local: Any) -> Any:
    """lm-eval's list of tasks. Reading the definitions of its 14,000 takes 5 to 15 s, which is saved where all names
    are in `local`."""
    from lm_eval.tasks import TaskManager

    if local is not None and set(names) <= _names(local):
        return local
    logger.info("reading lm-eval's list of tasks")
    return TaskManager(include_path=str(include_path) if include_path else None)


def _matches(manager: Any, name: str) -> list[str]:
    matches = sorted(manager.match_tasks([name]))
    if not matches:
        remedy = nearest(
            name, [*GENERATED, *manager.all_tasks], otherwise="see 'lm_eval ls tasks', or give --include-path"
        )
        raise NestQuantError(f"there is no task '{name}'", NOT_EVALUATED, remedy)
    return matches


def _load(manager: Any, name: str) -> dict[str, Any]:
    try:
        with cache_only_when_unreachable():
            loaded = manager.load([name])
    except Exception as error:  # definitions may hold code, and readers of data sets raise errors of their own
        raise NestQuantError(
            f"task {name} cannot be loaded ({reason_of(error)})",
            NOT_EVALUATED,
            "check the connection and the task's YAML, or use local tasks with --include-path",
        ) from error
    for task in loaded["tasks"].values():
        _refuse_unable(task)
    in_groups = {task.task_name for group in loaded["groups"].values() for task in group.get_all_tasks()}
    groups = {name: loaded["groups"][name]} if name in loaded["groups"] else {}
    return groups | {task: value for task, value in loaded["tasks"].items() if task not in in_groups}


def _refuse_unable(task: Any) -> None:
    """Refuses tasks that lm-eval would refuse after the model is loaded."""
    if getattr(task, "UNSAFE_CODE", False):
        cause, remedy = "runs code that the model writes", "run it with lm-eval's own command, in a sandbox"
    elif getattr(task, "MULTIMODAL", False):
        cause, remedy = "asks about images or sound", "leave it out: the model reads text"
    else:
        return
    raise NestQuantError(f"task {task.task_name} {cause}", NOT_EVALUATED, remedy)
