"""A model of images with text from its folder to answers: the text's decoder is packed, all else stays as it was."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    CLIPImageProcessor,
    LlavaProcessor,
    PreTrainedModel,
)

import nestquant_cli
from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.checkpoint.inspect import TOWERS, inspect
from nestquant_cli.checkpoint.verify import verify
from nestquant_cli.models.structure import find_decoder
from nestquant_cli.modules.cache import is_packed
from nestquant_cli.sharing.push import CARD, PushOptions, push
from nestquant_cli.tuning.parameters import Tunables
from scripts.architectures import images, measures
from scripts.architectures.text import LICENSE, save_tokenizer
from scripts.architectures.tiny import build
from tests.families import pack

TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% endfor %}"
# What is special in each: a tower with as many layers as the text (llava), sliding windows and tokens of an image that
# see each other (gemma3), positions in three directions (qwen2_vl), positions that begin with one (paligemma).
FAMILIES = ["llava", "gemma3", "qwen2_vl", "paligemma"]


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of an original and of its checkpoint at 8 bits."""
    folder = tmp_path_factory.mktemp(request.param)
    original = save(build(request.param), folder / "original")
    return original, pack(original, text(folder), folder / "packed", weight_bits=8, act_bits=8, kv_bits=8)


def text(folder: Path) -> Path:
    """A file of calibration text."""
    return Path(shutil.copyfile(LICENSE, folder / "text.txt"))


def save(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    save_tokenizer(folder, LICENSE.read_text(encoding="utf-8"))
    return folder


def load(folder: Path, **settings: Any) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder, **settings).eval()


def differs(reference: Any, model: Any, **inputs: Tensor) -> float:
    return measures.divergence(measures.logits(reference, **inputs), measures.logits(model, **inputs))


def test_an_image_is_answered_as_by_the_original(pair: tuple[Path, Path]) -> None:
    original, packed = map(load, pair)
    first, second = (images.inputs(original, seed) for seed in (0, 1))
    assert type(packed).__name__ == type(original).__name__
    assert differs(original, packed, **first) < 0.01
    seen = measures.divergence(measures.logits(packed, **first), measures.logits(packed, **second))
    assert seen > 0, "the image is not looked at"


def test_steps_with_an_image_are_those_of_one_forward(pair: tuple[Path, Path]) -> None:
    """PaliGemma's own are not: its whole prompt sees itself, and in a longer forward the answer is part of it."""
    original, packed = map(load, pair)
    assert images.steps_against_forward(packed) < 2 * images.steps_against_forward(original) + 0.001
    cache = packed(**images.inputs(packed, 0), use_cache=True).past_key_values
    assert is_packed(cache)


def test_all_but_the_decoder_layers_stays_as_it_is(pair: tuple[Path, Path]) -> None:
    original, packed = (load(folder).state_dict() for folder in pair)
    kept = [name for name in original if name in packed]
    assert kept and all(torch.equal(original[name], packed[name]) for name in kept)
    report = verify(pair[1], original=str(pair[0]))
    assert report.problems == []
    towers = [part.bytes for part in inspect(pair[1]).parts if part.name == TOWERS]
    assert towers and towers[0] > 0


def test_towers_are_not_tuned(pair: tuple[Path, Path]) -> None:
    model = load(pair[1])
    language = f"{find_decoder(model).owner_name}."
    names = list(Tunables(model).tensors())
    assert names and all(name.startswith(language) or name.startswith("lm_head") for name in names)


def test_the_card_names_the_classes_that_open_it(pair: tuple[Path, Path]) -> None:
    options = PushOptions(pair[1], "you/packed", "org/original", "mit", (), False, True)
    push(options, api=object())
    card = (pair[1] / CARD).read_text(encoding="utf-8")
    (pair[1] / CARD).unlink()
    assert "pipeline_tag: image-text-to-text" in card
    assert "import AutoModelForImageTextToText, AutoProcessor" in card and "processor = AutoProcessor.from" in card


def test_each_way_in_gives_the_same_class(pair: tuple[Path, Path]) -> None:
    packed = load(pair[1])
    inputs = images.inputs(packed, 0)
    expected = measures.logits(packed, **inputs)
    ways = [nestquant_cli.load(pair[1])[0]]
    if type(packed.config) in AutoModelForCausalLM._model_mapping:
        ways.append(AutoModelForCausalLM.from_pretrained(pair[1]))
    for model in ways:
        assert type(model).__name__ == type(packed).__name__
        assert torch.equal(measures.logits(model.eval(), **inputs), expected)


def test_the_language_model_of_a_packed_model_is_not_opened_alone(tmp_path: Path) -> None:
    """transformers would take Qwen3.5's for the text class where AutoModelForCausalLM is asked for it."""
    original = save(build("qwen3_5"), tmp_path / "original")
    packed = pack(original, text(tmp_path), tmp_path / "packed", kv_bits=16)
    assert type(load(packed)).__name__ == "Qwen3_5ForConditionalGeneration"
    with pytest.raises(
        NestQuantError, match=r"has its layers at model\.layers; .* such as AutoModelForImageTextToText"
    ):
        AutoModelForCausalLM.from_pretrained(packed)


def test_a_model_is_quantized_while_it_loads_and_saves_itself(tmp_path: Path) -> None:
    original = save(build("qwen2_vl"), tmp_path / "original")
    config = nestquant_cli.NestQuantConfig(bits=8, act_bits=8, kv_bits=8)
    model = load(original, quantization_config=config)
    inputs = images.inputs(model, 0)
    assert differs(load(original), model, **inputs) < 0.02
    model.save_pretrained(tmp_path / "saved")
    assert verify(tmp_path / "saved").problems == []
    assert torch.equal(measures.logits(load(tmp_path / "saved"), **inputs), measures.logits(model, **inputs))


def test_the_files_of_the_processor_are_kept_as_they_are(tmp_path: Path) -> None:
    model = build("llava")
    original, packed = save(model, tmp_path / "original"), tmp_path / "packed"
    tokenizer = AutoTokenizer.from_pretrained(original)
    place = images.image_token(model.config)
    tokenizer.add_tokens([f"<new{number}>" for number in range(place - len(tokenizer))])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    side = {"height": 28, "width": 28}
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size=side, crop_size=side),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy=model.config.vision_feature_select_strategy,
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    processor.save_pretrained(original)
    (original / "video_preprocessor_config.json").write_text('{"do_resize": true}\n', encoding="utf-8")
    shutil.copyfile(original / "model.safetensors", original / "other.bin")
    pack(original, text(tmp_path), packed)
    names = {path.name for path in original.iterdir()} - {"model.safetensors", "other.bin", "config.json"}
    same = {name for name in names if (packed / name).read_bytes() == (original / name).read_bytes()}
    assert same >= names - {"generation_config.json"} and "video_preprocessor_config.json" in same
    assert not (packed / "other.bin").exists() and verify(packed).problems == []
    picture = torch.randint(0, 256, (3, 40, 30), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    asked: dict[str, Any] = {"images": picture, "text": "A permission <image> granted", "return_tensors": "pt"}
    ours, theirs = (AutoProcessor.from_pretrained(folder)(**asked) for folder in (packed, original))
    assert all(torch.equal(ours[name], theirs[name]) for name in ("input_ids", "pixel_values"))
    answer = load(packed).generate(**ours, max_new_tokens=4, do_sample=False)
    assert answer.shape[1] > ours["input_ids"].shape[1]
