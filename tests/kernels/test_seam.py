"""Devices are known behind one seam: nothing outside `kernels/` imports a device's modules or asks for its type."""

import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "nestquant_cli"
FOLDERS = ("cpu", "gpu", "reference")
IMPORT = re.compile(
    r"(?:from|import)\s+\S*kernels(?:\.(?:cpu|gpu|reference)\b|\s+import\s+.*\b(?:cpu|gpu|reference)\b)"
)
QUESTION = re.compile(
    r"\.type\s*(?:==|!=|in\b|not in\b)|\bis_cpu\b|\bis_cuda\b|torch\.cuda\.(?!is_available|set_device)"
)

# What may ask a device. `base/device.py` asks for memory and name, and whether torch's threads serve it.
ASKS = {
    "base/device.py": "the one place for such questions",
    "modules/packed_attention.py": "lists the attributes of a tensor that a wrapper answers itself, among them is_cuda",
}


def sources(folder: Path) -> dict[str, str]:
    return {path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8") for path in folder.rglob("*.py")}


def matches(pattern: re.Pattern[str], texts: dict[str, str]) -> dict[str, list[str]]:
    lines = {name: [line.strip() for line in text.splitlines() if pattern.search(line)] for name, text in texts.items()}
    return {name: found for name, found in lines.items() if found}


OUTSIDE = {name: text for name, text in sources(PACKAGE).items() if not name.startswith("kernels/")}


def test_no_other_package_imports_the_kernels_of_a_device() -> None:
    assert matches(IMPORT, OUTSIDE) == {}


def test_no_other_package_asks_for_the_type_of_a_device() -> None:
    assert matches(QUESTION, OUTSIDE).keys() - ASKS.keys() == set()


@pytest.mark.parametrize(
    "folder, foreign",
    [("reference", ("numba", "triton", "cpu", "gpu")), ("cpu", ("triton", "gpu")), ("gpu", ("numba", "cpu"))],
)
def test_folders_of_kernels_are_pure(folder: str, foreign: tuple[str, ...]) -> None:
    pattern = re.compile(rf"^\s*(?:from|import)\s+\.*(?:{'|'.join(foreign)})\b")
    assert matches(pattern, sources(PACKAGE / "kernels" / folder)) == {}


def test_what_all_devices_share_imports_no_compiler() -> None:
    shared = {name: text for name, text in sources(PACKAGE / "kernels").items() if name.count("/") == 1}
    shared |= sources(PACKAGE / "kernels" / "contract")
    pattern = re.compile(rf"^\s*(?:from|import)\s+(?:numba|triton|\.+(?:{'|'.join(FOLDERS)}))\b")
    assert len(shared) > 5 and matches(pattern, shared) == {}
