"""Chat templates, special tokens and settings of generation are checked on the tokenizer, before a model is loaded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.evaluation.prompts import Prompting, complete_special_tokens, prompting, read_gen_kwargs
from nestquant_cli.models.source import load_tokenizer, resolve

Copy = Callable[..., Path]


@pytest.fixture
def changed(tiny_model_folder: Path, tmp_path: Path) -> Copy:
    """The tiny model's folder with other names of special tokens: None removes one."""

    def change(tokenizer: dict[str, Any], config: dict[str, Any] | None = None) -> Path:
        folder = Path(shutil.copytree(tiny_model_folder, tmp_path / "changed"))
        for name, values in (("tokenizer_config.json", tokenizer), ("config.json", config or {})):
            found = json.loads((folder / name).read_text()) | values
            (folder / name).write_text(json.dumps(found))
        return folder

    return change


def completed(folder: Path) -> tuple[Any, dict[str, Any]]:
    source = resolve(str(folder))
    tokenizer = load_tokenizer(source)
    return tokenizer, complete_special_tokens(tokenizer, source)


def test_the_tokens_of_the_tokenizer_stay(tiny_model_folder: Path) -> None:
    _, message = completed(tiny_model_folder)
    assert message == {"prefix_token_id": 0, "end_token_id": 1, "end_token_from": "tokenizer"}


def test_the_end_of_text_of_the_configuration_stands_in(changed: Copy) -> None:
    tokenizer, message = completed(changed({"eos_token": None, "bos_token": None}))
    assert message == {"prefix_token_id": 1, "end_token_id": 1, "end_token_from": "config.json"}
    assert (tokenizer.eos_token, tokenizer.decode([1, 60], skip_special_tokens=True)) == (
        "</s>",
        tokenizer.decode([60]),
    )


def test_bos_ends_texts_where_nothing_else_does(changed: Copy) -> None:
    _, message = completed(changed({"eos_token": None}, {"eos_token_id": None}))
    assert message == {"prefix_token_id": 0, "end_token_id": 0, "end_token_from": "tokenizer"}


@pytest.mark.parametrize("outside", [None, 300, -1, [300]])
def test_without_any_it_is_refused_in_one_line(changed: Copy, outside: object) -> None:
    folder = changed({"eos_token": None, "bos_token": None}, {"eos_token_id": outside, "bos_token_id": None})
    with pytest.raises(NestQuantError, match=r"names BOS or EOS.* tokenizer_config.json, such as"):
        completed(folder)
    mended = json.loads((folder / "tokenizer_config.json").read_text()) | {"eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(mended))
    assert completed(folder)[1]["end_token_id"] == 1  # what the message advises


def test_templates_are_found_by_name(talking: Path) -> None:
    tokenizer = load_tokenizer(resolve(str(talking)))
    own = prompting(tokenizer, True, "be brief", None)
    assert (own.template, own.template_name, own.as_turns) == (tokenizer.chat_template, "default", True)
    tokenizer.chat_template = {"default": "{{ messages }}", "tool": "T{{ messages[0].content }}"}
    tool = prompting(tokenizer, "tool", "x", False)
    assert (tool.template, tool.as_turns) == ("T{{ messages[0].content }}", False)
    assert tool.described() == "chat template 'tool', few-shot examples as one message, system instruction 'x'"
    with pytest.raises(NestQuantError, match=r"no chat template 'none'; .*use --chat-template with default, tool"):
        prompting(tokenizer, "none", None, None)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no system') }}", r"refuses a system instruction \(no system\)"),
        ("{{ messages[-1].content }}", "drops the system instruction"),
    ],
)
def test_a_system_instruction_is_not_lost(talking: Path, template: str, message: str) -> None:
    tokenizer = load_tokenizer(resolve(str(talking)))
    tokenizer.chat_template = template
    prompting(tokenizer, True, None, None)
    with pytest.raises(NestQuantError, match=message):
        prompting(tokenizer, True, "be brief", None)


def test_without_a_template_the_prompt_stays(tiny_model_folder: Path) -> None:
    tokenizer = load_tokenizer(resolve(str(tiny_model_folder)))
    assert prompting(tokenizer, False, None, None) == Prompting()
    assert Prompting().as_json()["chat_template"] is None
    for template, turns, message in ((True, None, "no chat template"), (False, True, "add --apply-chat-template")):
        with pytest.raises(NestQuantError, match=message):
            prompting(tokenizer, template, None, turns)


@pytest.mark.parametrize(
    "text", ["temperature=0.5,do_sample=true,until=.", '{"temperature": 0.5, "do_sample": true, "until": "."}']
)
def test_settings_of_generation_in_both_forms(text: str) -> None:
    assert read_gen_kwargs(text) == {"temperature": 0.5, "do_sample": True, "until": "."}
    assert read_gen_kwargs(None) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("temprature=1", "unknown setting 'temprature'; .*did you mean 'temperature'"),
        ("xyzzy=1", "unknown setting 'xyzzy'; .*GenerationConfig"),
        ("temperature=0.5,temperature=1", "has temperature twice"),
        ('{"top_k": 5, "top_k": 6}', "has top_k twice"),
        ("temperature=nan", "temperature=nan is not a finite number"),
        ('{"top_p": -Infinity}', "top_p=-inf is not a finite number"),
        ("greedy", "'greedy' cannot be read"),
        ("", "'' cannot be read"),
        ("{}", "'{}' cannot be read"),
        ('{"top_k": }', "is not JSON"),
    ],
)
def test_nonsense_settings_are_refused(text: str, message: str) -> None:
    with pytest.raises(NestQuantError, match=message):
        read_gen_kwargs(text)
