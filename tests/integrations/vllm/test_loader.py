"""vLLM's loader of models with what the plugin adds: where it stopped, and what it passed over."""

import importlib.util
import logging
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.codecs.registry import shape_of
from nestquant_cli.integrations.vllm.refusals import NotFollowedError
from nestquant_cli.integrations.vllm.state import ModelState
from nestquant_cli.modules.layout import Layout

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not here: make vllm"),
]


@pytest.fixture
def value() -> dict[str, Any]:
    """`quantization_config` of a checkpoint without matrices."""
    return {"layout": Layout(shape_of("nestquant", 4, None, "weight"), None, None, 1, {}, {"x": None}).to_dict()}


def new_loader() -> Any:
    from vllm.config.load import LoadConfig
    from vllm.model_executor.model_loader import get_model_loader

    from nestquant_cli.integrations.vllm import loader

    loader.register()
    return get_model_loader(LoadConfig())


def models_of(state: ModelState | None) -> tuple[Any, Any]:
    """The configurations that a loader is given."""
    return SimpleNamespace(quant_config=SimpleNamespace(state=state) if state else None), SimpleNamespace()


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Lets vLLM's own loader fail at a layer."""
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    def load_model(self: Any, vllm_config: Any, model_config: Any, prefix: str = "") -> None:
        if vllm_config.quant_config is not None:
            vllm_config.quant_config.state.place = "model.layers.3.mixer"
        raise error

    monkeypatch.setattr(DefaultModelLoader, "load_model", load_model)


@pytest.mark.parametrize(
    "error", [AttributeError("no weight"), KeyError("in_proj.words"), AssertionError(), RuntimeError("shapes\ndiffer")]
)
def test_an_error_of_vllm_is_one_line_that_names_a_module(
    error: Exception, value: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, error)
    with pytest.raises(NotFollowedError, match=r"vLLM stopped at model\.layers\.3\.mixer: ") as caught:
        new_loader().load_model(*models_of(ModelState(value["layout"])))
    assert "\n" not in str(caught.value) and caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error", [NestQuantError("cause", "consequence", "remedy"), FileNotFoundError("gone"), torch.OutOfMemoryError()]
)
def test_errors_that_say_what_is_wrong_stay(
    error: Exception, value: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, error)
    with pytest.raises(type(error)) as caught:
        new_loader().load_model(*models_of(ModelState(value["layout"])))
    assert caught.value is error


def test_other_models_are_vllms_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, KeyError("factor"))
    loader = new_loader()
    with pytest.raises(KeyError, match="factor"):
        loader.load_model(*models_of(None))
    assert loader.enable_weights_track is None


def test_tensors_are_named_as_they_are_loaded_and_missing_ones_looked_for(
    value: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    names = ["model.norm.weight", "model.layers.0.mlp.up_proj.words"]
    places: list[str] = []
    state = ModelState(value["layout"])

    def load_model(self: Any, *configurations: Any) -> None:
        assert self.enable_weights_track
        places.extend(state.place for _ in self.get_all_weights(None, None))

    monkeypatch.setattr(DefaultModelLoader, "load_model", load_model)
    monkeypatch.setattr(DefaultModelLoader, "get_all_weights", lambda *_: ((name, None) for name in names))
    new_loader().load_model(*models_of(state))
    assert places == names


def test_it_is_there_where_a_configuration_is_made_or_arrives(value: dict[str, Any]) -> None:
    from vllm.config.load import LoadConfig
    from vllm.model_executor.model_loader import get_model_loader, register_model_loader
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    from nestquant_cli.integrations.vllm.config import CheckpointConfig
    from nestquant_cli.integrations.vllm.loader import FollowingLoader

    heard: list[str] = []
    listener = logging.Handler()
    listener.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    arrived = pickle.dumps(CheckpointConfig(value))
    for arrive in (lambda: CheckpointConfig(value), lambda: pickle.loads(arrived)):
        register_model_loader("auto")(DefaultModelLoader)
        log = logging.getLogger(register_model_loader.__module__)
        log.addHandler(listener)
        arrive()
        log.removeHandler(listener)
        assert type(get_model_loader(LoadConfig())) is FollowingLoader
    assert not heard and not log.disabled


def test_a_norm_that_was_not_loaded_is_named_and_coded_layers_look_after_themselves(
    value: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    model = torch.nn.ModuleDict({"norm": torch.nn.LayerNorm(8), "up": torch.nn.Linear(8, 8)})
    model["up"].quant_method = SimpleNamespace(process_weights_after_loading=print)

    def load_model(self: Any, *configurations: Any) -> None:
        self.track_weights_loading(model, {"norm.weight"}, quantized=True)

    monkeypatch.setattr(DefaultModelLoader, "load_model", load_model)
    with pytest.raises(NotFollowedError, match=r"not initialized from checkpoint: \{'norm\.bias'\}"):
        new_loader().load_model(*models_of(ModelState(value["layout"])))
