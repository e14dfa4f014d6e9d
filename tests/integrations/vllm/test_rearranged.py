"""Which classes of models rearrange rows, without vLLM."""

import sys
from types import ModuleType

import pytest

from nestquant_cli.integrations.vllm.rearranged import REARRANGES, rearranges_rows


class Plain:
    """A class that does not."""


class Rearranging:
    """One that does."""

    def permute_qk_weight_for_rotary(self) -> None:
        """The method of vLLM's."""


def test_a_class_and_what_it_has_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hasattr(Rearranging, REARRANGES)
    for name, inside in (("plain", {}), ("outer", {"Inner": Rearranging})):
        module = ModuleType(name)
        vars(module).update(inside)
        monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(Plain, "__module__", name)
        assert rearranges_rows(Plain) == bool(inside)
    monkeypatch.setattr(Rearranging, "__module__", "plain")
    assert rearranges_rows(Rearranging)
