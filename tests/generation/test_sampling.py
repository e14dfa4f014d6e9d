import pytest
from transformers import GenerationConfig

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.generation.sampling import Sampling, described
from tests.families import make_model


def configured(sampling: Sampling, **own: object) -> GenerationConfig:
    model = make_model("llama")
    model.generation_config = GenerationConfig(eos_token_id=1, **own)
    return sampling.config(model, end_token=7)


def test_without_options_the_model_has_its_way() -> None:
    drawing = configured(Sampling(), do_sample=True, temperature=0.6, top_p=0.9)
    assert (drawing.do_sample, drawing.temperature, drawing.top_p) == (True, 0.6, 0.9)
    assert described(drawing) == "drawn with temperature 0.6, top-p 0.9"
    assert described(configured(Sampling())) == "the most likely token each time"


def test_options_win() -> None:
    own = {"do_sample": True, "temperature": 0.6}
    assert not configured(Sampling(temperature=0), **own).do_sample
    found = configured(Sampling(top_k=5), **own)
    assert (found.do_sample, found.temperature, found.top_k) == (True, 0.6, 5)
    assert described(configured(Sampling(temperature=1.5))) == "drawn with temperature 1.5"


def test_one_sequence_ends_at_any_end_token() -> None:
    found = configured(Sampling(max_new_tokens=3), num_beams=4, max_length=20)
    assert (found.num_beams, found.max_new_tokens, found.max_length) == (1, 3, None)
    assert found.eos_token_id == [1, 7] and found.pad_token_id == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"max_new_tokens": 0},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": 0},
        {"temperature": 0, "top_k": 3},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(NestQuantError, match="no text was generated"):
        Sampling(**settings)  # type: ignore[arg-type]
