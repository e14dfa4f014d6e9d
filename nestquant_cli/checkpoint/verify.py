"""Checks everything in a packed checkpoint that can be checked.

Files against the manifest; tensors against the manifest and against the model that config.json describes; every word,
row scale and recorded error. All problems are collected, so that one altered byte does not hide another.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ..base.errors import NestQuantError
from ..base.progress import track
from ..integrations.transformers.config_entries import foreign_code, map_problem
from ..models.shards import Shard, read_shard
from ..modules.layout import Layout
from ..storage.files import read_json
from .expected import Expected, expected_tensors
from .findings import Problem, VerifyReport
from .manifest import ALTERED, CONFIG, INDEX, MANIFEST, REPORT, file_problem, stray_weights
from .matrices import MatrixChecks
from .original import load_original
from .read import index_problem, open_checkpoint, read_layout, read_quantization_config
from .staying import stored_staying
from .tensors import TensorChecks

T = TypeVar("T")
DTYPES = ("float32", "bfloat16", "float16")  # dtypes that a model can be loaded in


def verify(folder: Path | str, original: str | None = None) -> VerifyReport:
    """Checks a packed checkpoint.

    Args:
        folder: folder of the checkpoint.
        original: the model that it was made from, by any name that `resolve` takes; its weights are then compared with
            the packed ones, and the relative errors with the recorded ones.

    Raises:
        NestQuantError: the folder is no complete packed checkpoint, its manifest cannot be used, or the original cannot
            be loaded. What is wrong with the contents is in the result.

    Example:
        >>> verify("demo-w4", original="demo").problems
        []
    """
    folder = Path(folder)
    manifest = open_checkpoint(folder)
    model = None if original is None else load_original(original, _dtype_of(folder))
    report = VerifyReport(folder)
    _check_files(report, manifest)
    shards = _read_shards(report, manifest)
    report.add(INDEX, None, _attempt(report, INDEX, lambda: index_problem(folder, manifest)))
    tensors = TensorChecks(report, manifest["tensors"], shards)
    layout, expected = _read_config(report)
    if layout is not None:
        report.staying = stored_staying(folder, layout, shards.values()).to_dict()
    tensors.compare(expected)
    tensors.hash()
    if layout is not None and expected is not None:
        records, tuned = _read_records(report)
        matrices = MatrixChecks(report, layout, records, tensors)
        matrices.run(model)
        if model is not None:
            matrices.compare_kept(model, tuned)
    report.problems = _most_specific(report.problems)
    return report


def _dtype_of(folder: Path) -> str:
    """The dtype that the original was loaded in, as config.json records it."""
    recipe = read_quantization_config(folder).get("recipe")
    dtype = recipe.get("dtype") if isinstance(recipe, dict) else None
    return dtype if dtype in DTYPES else "auto"


def _check_files(report: VerifyReport, manifest: dict[str, Any]) -> None:
    for name, expected in track(manifest["files"].items(), "hashing files", total=len(manifest["files"])):
        if report.add(name, None, file_problem(report.folder, name, expected)):
            report.files += 1
            report.bytes += expected["bytes"]
    here = [path.name for path in report.folder.iterdir()]
    for name in foreign_code(report.folder, here):
        report.add(name, None, "is code that nestquant did not write")
    stray = stray_weights(report.folder, manifest)
    for name in stray:
        report.add(name, None, "is not in the manifest")
    listed = {*manifest["files"], *stray, MANIFEST}
    report.unlisted = sorted(name for name in here if name not in listed)


def _read_shards(report: VerifyReport, manifest: dict[str, Any]) -> dict[str, Shard]:
    shards = {}
    for name in manifest["files"]:
        if name.endswith(".safetensors"):
            shard = _attempt(report, name, partial(read_shard, report.folder / name))
            if shard is not None:
                shards[name] = shard
    return shards


def _read_config(report: VerifyReport) -> tuple[Layout | None, dict[str, Expected] | None]:
    """Layout and tensors of the model; None from a config.json that is not what was written, which accuses no other."""
    if any(problem.file == "config.json" for problem in report.problems):
        return None, None
    layout = _attempt(report, "config.json", lambda: read_layout(report.folder))
    report.add(CONFIG, None, _attempt(report, CONFIG, lambda: map_problem(read_json(report.folder / CONFIG))))
    if layout is None:
        return None, None
    return layout, _attempt(report, "config.json", partial(expected_tensors, report.folder, layout))


def _read_records(report: VerifyReport) -> tuple[dict[str, Any] | None, dict[str, float]]:
    """Records of the matrices, None where there are none, and recorded changes of tensors that were tuned."""
    value = _attempt(report, REPORT, lambda: read_json(report.folder / REPORT))
    value = value if isinstance(value, dict) else {}
    matrices, tuned = value.get("matrices"), value.get("tuned", {})
    if not isinstance(matrices, dict):
        report.add(REPORT, None, "has no record of matrices")
        return None, {}
    if not isinstance(tuned, dict) or not all(isinstance(change, int | float) for change in tuned.values()):
        report.add(REPORT, None, "has no usable record of what was tuned")
        return matrices, {}
    return matrices, tuned


def _attempt(report: VerifyReport, file: str, read: Callable[[], T]) -> T | None:
    """What `read` returns; None, with the problem noted for `file`, where it finds the file unusable."""
    try:
        return read()
    except NestQuantError as error:
        report.add(file, None, error.cause.removeprefix(f"{report.folder / file} "))
    except (OverflowError, RecursionError) as error:  # numbers and nesting beyond what Python's JSON is made for
        report.add(file, None, f"is not usable ({error})")
    return None


def _most_specific(problems: list[Problem]) -> list[Problem]:
    """Leaves out "altered" for a file with a problem that says more, and what follows from a missing or short file."""
    kept = []
    for file in dict.fromkeys(problem.file for problem in problems):
        of_file = [problem for problem in problems if problem.file == file]
        first = of_file[0]
        if len(of_file) > 1 and first.tensor is None and first.what == ALTERED:
            of_file = of_file[1:]
        elif first.tensor is None:
            of_file = of_file[:1]
        kept += of_file
    return kept
