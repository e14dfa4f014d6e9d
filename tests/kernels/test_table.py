"""The table of operations: every function is there and takes what the contract says, and a device gets its own."""

import copy
import importlib.util
import inspect
import logging
import pickle
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.kernels import device_kernels, for_device, has
from nestquant_cli.kernels.contract import Kernels
from nestquant_cli.kernels.device_kernels import SWITCH, of_family, of_kind
from nestquant_cli.kernels.limits import LIMITS
from nestquant_cli.kernels.reference import nested as reference
from nestquant_cli.kernels.table import FAMILIES, TABLE

CPU, CUDA, META = (torch.device(name) for name in ("cpu", "cuda", "meta"))
FUNCTIONS = [
    (name, family)
    for name, operation in TABLE.items()
    for family in FAMILIES
    if operation.own(family) is not None and (family != "gpu" or find_spec("triton") is not None)
]


@pytest.fixture
def asked_anew() -> object:
    """`for_device` decides again, here and in the tests that follow."""
    of_kind.cache_clear()
    yield
    of_kind.cache_clear()


def test_the_table_has_the_operations_of_the_contract() -> None:
    wanted = {name for name, value in inspect.getmembers(Kernels, inspect.isfunction) if not name.startswith("_")}
    assert set(TABLE) == wanted
    assert set(LIMITS) == set(FAMILIES)


@pytest.mark.parametrize("name, family", FUNCTIONS)
def test_a_function_takes_what_the_contract_says(name: str, family: str) -> None:
    """It may take more, where that has defaults."""
    _, *wanted = inspect.signature(getattr(Kernels, name)).parameters.values()  # without self
    path = TABLE[name].own(family)
    assert path is not None
    module, function = path.split(":")
    taken = list(
        inspect.signature(getattr(import_module(f"nestquant_cli.kernels.{module}"), function)).parameters.values()
    )
    assert [each.name for each in taken[: len(wanted)]] == [each.name for each in wanted]
    assert [each.default for each in taken[: len(wanted)]] == [each.default for each in wanted]
    assert all(each.default is not inspect.Parameter.empty for each in taken[len(wanted) :])


@pytest.mark.parametrize("name", TABLE)
def test_every_operation_has_a_reference_and_a_documentation(name: str) -> None:
    assert TABLE[name].reference is not None
    about = getattr(Kernels, name).__doc__
    assert "Args:" in about and "Returns:" in about


def test_an_operation_is_looked_up_once() -> None:
    kernels = of_family("reference")
    assert "quantize" not in vars(kernels)
    assert kernels.quantize is reference.quantize
    assert vars(kernels)["quantize"] is reference.quantize
    with pytest.raises(AttributeError):
        _ = kernels.no_such_operation  # type: ignore[attr-defined]


def test_what_a_device_lacks_is_the_references() -> None:
    assert has(CPU, "attend") and for_device(CPU).attend is not reference
    assert not has(META, "quantize") and for_device(META).quantize is reference.quantize
    assert for_device(torch.device("cpu", 0)) is for_device(CPU)


def test_kernels_can_be_copied_and_sent_to_another_process() -> None:
    kernels = for_device(CPU)
    assert copy.deepcopy(kernels) is kernels and pickle.loads(pickle.dumps(kernels)) is kernels


@pytest.mark.usefixtures("asked_anew")
def test_one_line_says_what_the_reference_computes(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_kernels, "find_spec", lambda name: name)
    with caplog.at_level(logging.INFO, "nestquant"):
        for _ in range(2):
            for_device(CUDA), for_device(META)
    (line,) = (record.message for record in caplog.records)
    assert line.startswith("kernels for cuda: gpu; the reference computes ")
    assert "attend" in line and "block_errors" not in line


@pytest.mark.usefixtures("asked_anew")
def test_nothing_is_said_of_a_cpu_as_it_lacks_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "nestquant"):
        for_device(CPU)
    assert not caplog.records and not any(operation.falls("cpu") for operation in TABLE.values())


@pytest.mark.usefixtures("asked_anew")
@pytest.mark.parametrize("family", ["reference", "cpu"])
def test_the_switch_chooses(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, family)
    assert for_device(CPU).family == family
    assert for_device(META).family == "reference"


@pytest.mark.usefixtures("asked_anew")
@pytest.mark.parametrize(
    "family, kind, message",
    [
        ("gpus", "cpu", "NESTQUANT_KERNELS is 'gpus', which is no family of kernels; .*; did you mean 'gpu'"),
        ("cpu", "cuda", "NESTQUANT_KERNELS is cpu, and tensors are on cuda"),
        ("gpu", "cpu", "NESTQUANT_KERNELS is gpu, and Triton cannot run on cpu here; .* TRITON_INTERPRET=1"),
    ],
)
def test_a_switch_that_cannot_be_is_one_line(
    family: str, kind: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCH, family)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(NestQuantError, match=message) as error:
        for_device(torch.device(kind))
    assert "\n" not in str(error.value)


def test_the_page_has_the_table() -> None:
    path = Path(__file__).resolve().parents[2] / "scripts" / "make_kernels_table.py"
    spec = importlib.util.spec_from_file_location("make_kernels_table", path)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    text = script.TARGET.read_text(encoding="utf-8")
    assert text == script.page(text), "run python scripts/make_kernels_table.py"
