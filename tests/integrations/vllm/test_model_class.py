"""What classes of models say of their layers, without vLLM."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from nestquant_cli.integrations.vllm.model_class import REARRANGES, fused_layers, rearranges_rows


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


def test_layers_that_are_fused_by_renaming(monkeypatch: pytest.MonkeyPatch) -> None:
    stacked = {
        ".v_proj": (".qkv_proj", "v"),
        ".q_proj": (".qkv_proj", "q"),
        ".k_proj": (".qkv_proj", "k"),
        ".up_proj": (".gate_up_proj", 1),
        ".gate_proj": (".gate_up_proj", 0),
    }
    module = ModuleType("renaming")
    inner = type("Inner", (), {"hf_to_vllm_mapper": SimpleNamespace(orig_to_new_stacked=stacked)})
    vars(module)["Inner"] = inner
    monkeypatch.setitem(sys.modules, "renaming", module)
    monkeypatch.setattr(Plain, "__module__", "renaming")
    expected = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
    assert fused_layers(Plain) == expected
    vars(module).clear()
    assert fused_layers(Plain) == {}
