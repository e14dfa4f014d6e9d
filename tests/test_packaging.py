"""What the package says it needs: the lowest versions are those that are tested, and the pinned ones are allowed."""

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import nestquant_cli

ROOT = Path(__file__).resolve().parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def requirements(start: str) -> list[Requirement]:
    """Of a list in pyproject.toml, which Python 3.10 has no parser for."""
    lines = PROJECT.partition(f"\n{start} = [\n")[2].partition("\n]")[0]
    return [Requirement(text) for text in re.findall(r'^    "([^"]+)"', lines, re.MULTILINE)]


def pins(name: str) -> dict[str, list[str]]:
    """Versions by package, of which there are two where they depend on the version of Python."""
    found: dict[str, list[str]] = {}
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line.partition(" #")[0])
            found.setdefault(requirement.name, []).extend(pin.version for pin in requirement.specifier)
    return found


def lower_bound(requirement: Requirement) -> str:
    (bound,) = (each.version for each in requirement.specifier if each.operator == ">=")
    return bound


def test_every_lower_bound_is_a_version_that_is_tested() -> None:
    lowest, needed = pins("constraints-lowest.txt"), requirements("dependencies")
    assert len(needed) > 10
    for requirement in needed:
        bound, (tested,) = lower_bound(requirement), lowest[requirement.name]
        assert re.sub(r"(\.0)+$", "", tested) == re.sub(r"(\.0)+$", "", bound), requirement.name


@pytest.mark.parametrize("file", ["constraints.txt", "constraints-lowest.txt", "constraints-vllm.txt"])
def test_every_pinned_version_is_allowed(file: str) -> None:
    pinned = pins(file)
    for requirement in [*requirements("dependencies"), *requirements("dev")]:
        for version in pinned.get(requirement.name, []):
            assert requirement.specifier.contains(version), (requirement, version)
    assert {requirement.name for requirement in requirements("dependencies")} <= pinned.keys()


def test_one_torch_is_installed_everywhere() -> None:
    """A loose requirement lets pip choose a build of gigabytes, so torch is installed first, at one version."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    installed = set(re.findall(r"torch==([\w.]+)", makefile))
    assert [*installed] == pins("constraints.txt")["torch"]
    assert pins("constraints-lowest.txt")["torch"][0] in installed


def test_the_version_is_read_from_the_file_that_has_it() -> None:
    found = re.search(r'^\[tool\.hatch\.version\]\npath = "(.+)"$', PROJECT, re.MULTILINE)
    assert found is not None
    text = (ROOT / found[1]).read_text(encoding="utf-8")
    version = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)  # the pattern that hatchling looks for
    assert version is not None and nestquant_cli.__version__ == version[1]


def test_every_test_that_the_makefile_names_is_there() -> None:
    named = re.findall(r"tests/[\w/]+(?:\.py)?(?:::\w+)?", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert len(named) > 5
    for name in named:
        path, _, function = name.partition("::")
        assert (ROOT / path).exists(), name
        assert f"def {function}(" in (ROOT / path).read_text(encoding="utf-8") if function else True, name
