"""What the layers of a model share: a damaged layout is refused, the form of the weights is chosen once."""

from pathlib import Path

import pytest
import torch

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.checkpoint.read import read_quantization_config
from nestquant_cli.codecs.integer.code import IntegerCode
from nestquant_cli.integrations.vllm import state as module
from nestquant_cli.integrations.vllm.state import RESIDENT, ModelState, number_in
from nestquant_cli.modules.table_layout import TableLayout
from tests.families import pack

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def layout(
    tiny_model_folder: Path, tiny_text_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, object]:
    folder = pack(tiny_model_folder, tiny_text_file, tmp_path_factory.mktemp("w4") / "w4", weight_bits=4, act_bits=16)
    value: dict[str, object] = read_quantization_config(folder)["layout"]
    return value


@pytest.mark.parametrize("change", [{"format_version": 99}, {"linears": 3}, {"seed": None}])
def test_a_layout_that_cannot_be_used_is_one_line(layout: dict[str, object], change: dict[str, object]) -> None:
    with pytest.raises(NestQuantError) as caught:
        ModelState(layout | change)
    assert "\n" not in str(caught.value)


def test_a_config_without_layout_is_refused() -> None:
    with pytest.raises(NestQuantError):
        ModelState(None)


def test_coded_tables_are_refused(layout: dict[str, object]) -> None:
    table = TableLayout(300, 64, IntegerCode(8, clip=1.0), True)
    tables = {"tables": {"model.embed_tokens": table.to_dict()}, "rotation": "hadamard", "reflections": {}}
    with pytest.raises(NestQuantError, match="coded embedding or head"):
        ModelState(layout | {"format_version": 7} | tables)


def test_the_form_is_what_the_variable_says(layout: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    for form in ("int8", "packed"):
        monkeypatch.setenv(RESIDENT, form)
        assert ModelState(layout).int8(CPU) == (form == "int8")
    monkeypatch.setenv(RESIDENT, "int4")
    with pytest.raises(NestQuantError, match="int4"):
        ModelState(layout)


@pytest.mark.parametrize("value", [None, "", "auto"])
def test_the_form_follows_the_free_memory(
    layout: dict[str, object], value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(RESIDENT, raising=False)
    if value is not None:
        monkeypatch.setenv(RESIDENT, value)
    asked: list[int] = []
    for fits in (True, False):
        monkeypatch.setattr(module, "int8_fits", lambda entries, device, fits=fits: asked.append(entries) or fits)
        state = ModelState(layout)
        assert state.int8(CPU) == state.int8(CPU) == fits
    linears = ModelState(layout).layout.linears.values()
    assert asked == [sum(linear.in_features * linear.out_features for linear in linears)] * 2


def test_what_no_layer_has_is_named(layout: dict[str, object]) -> None:
    state = ModelState(layout)
    names = list(state.layout.linears)
    holder = torch.nn.Identity()
    state.names.take(names[:-1], holder)
    with pytest.raises(NestQuantError, match=names[-1].replace(".", r"\.")):
        state.refuse_untaken(None)
    state.refuse_untaken(range(number_in(names[-1])))  # it is in another process
    state.names.take(names[-1:], holder)
    state.refuse_untaken(None)
