"""How the prompts of tasks are made for a model: its chat template, its special tokens, and settings of generation.

Everything here is checked on the tokenizer alone, before the weights are loaded.
"""

import hashlib
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..base.errors import NestQuantError
from ..base.names import refuse_unknown
from ..models.source import Source, load_config
from .gates import NOT_EVALUATED

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("nestquant")

DEFAULT_TEMPLATE = "default"  # what transformers calls the template of a tokenizer that has one
# names that lm-eval takes for itself; max_new_tokens, which is transformers', is another name of max_gen_toks
_OWN_SETTINGS = ("until", "max_gen_toks", "max_tokens", "max_completion_tokens")


@dataclass(frozen=True)
class Prompting:
    """How prompts are made.

    Attributes:
        template: text of the chat template (Jinja); None puts prompts before the model as they are.
        template_name: its name, None without a template.
        system: the system instruction, None for none.
        as_turns: whether few-shot examples are turns of a conversation, and not a part of one message.
    """

    template: str | None = None
    template_name: str | None = None
    system: str | None = None
    as_turns: bool = False

    def described(self) -> str:
        """In words: "without chat template", or what is used."""
        parts = [f"chat template '{self.template_name}'" if self.template else "without chat template"]
        if self.template:
            parts.append(f"few-shot examples as {'turns' if self.as_turns else 'one message'}")
        if self.system is not None:
            parts.append(f"system instruction {self.system!r}")
        return ", ".join(parts)

    def as_json(self) -> dict[str, Any]:
        """For the protocol: the template by name and hash."""
        text = self.template
        digest = None if text is None else hashlib.sha256(text.encode()).hexdigest()
        return {
            "chat_template": None if text is None else {"name": self.template_name, "sha256": digest},
            "system_instruction": self.system,
            "fewshot_as_multiturn": self.as_turns,
        }


def prompting(
    tokenizer: "PreTrainedTokenizerBase", template: bool | str, system: str | None, as_turns: bool | None
) -> Prompting:
    """The chat template by name, tried on a message.

    Args:
        tokenizer: of the model.
        template: False for none, True for the tokenizer's own, or the name of one of several.
        system: a system instruction; without a template it stands before the prompt as it is.
        as_turns: few-shot examples as turns; None is lm-eval's own default, which is yes with a template.

    Raises:
        NestQuantError: there is no such template, or it refuses or drops the system instruction.
    """
    if not template:
        if as_turns:
            raise NestQuantError(
                "--fewshot-as-multiturn needs turns of a conversation", NOT_EVALUATED, "add --apply-chat-template"
            )
        return Prompting(system=system)
    text, name = _template(tokenizer, template)
    if system is not None and system.strip() not in _tried(tokenizer, text, system):
        raise NestQuantError(
            "the chat template drops the system instruction", NOT_EVALUATED, "leave out --system-instruction"
        )
    return Prompting(text, name, system, True if as_turns is None else as_turns)


def _template(tokenizer: "PreTrainedTokenizerBase", wanted: bool | str) -> tuple[str, str]:
    own: Any = tokenizer.chat_template
    templates = own if isinstance(own, Mapping) else {DEFAULT_TEMPLATE: own} if own else {}
    if not templates:
        raise NestQuantError("the tokenizer has no chat template", NOT_EVALUATED, "leave out --apply-chat-template")
    name = DEFAULT_TEMPLATE if wanted is True else str(wanted)
    if name not in templates:
        cause = f"the tokenizer has no chat template '{name}'"
        raise NestQuantError(cause, NOT_EVALUATED, f"use --chat-template with {', '.join(sorted(templates))}")
    return templates[name], name


def _tried(tokenizer: "PreTrainedTokenizerBase", template: str, system: str) -> str:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": "1"}]
    try:
        return str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, chat_template=template)
        )
    except Exception as error:  # a template is a program that comes with the model
        raise NestQuantError(
            f"the chat template refuses a system instruction ({first_line(error)})",
            NOT_EVALUATED,
            "leave out --system-instruction",
        ) from error


def complete_special_tokens(tokenizer: "PreTrainedTokenizerBase", source: Source) -> dict[str, Any]:
    """Gives a tokenizer that names no end of text the one that the model's configuration names.

    lm-eval puts BOS, or EOS where there is none, before a text without context, and ends generated text at EOS.

    Returns:
        For the protocol: ids of the tokens that lm-eval uses, and where the end of text comes from.

    Raises:
        NestQuantError: neither the tokenizer nor the configuration names one.
    """
    origin = "tokenizer"
    if tokenizer.eos_token_id is None:
        config = load_config(source).get_text_config()
        ends = config.eos_token_id
        named = [*(ends if isinstance(ends, (list, tuple)) else [ends]), tokenizer.bos_token_id, config.bos_token_id]
        known = [each for each in named if isinstance(each, int) and 0 <= each < len(tokenizer)]
        if not known:
            again = " of the original model, and quantize it again" if source.kind == "packed" else ""
            raise NestQuantError(
                f"neither the tokenizer nor config.json of {source.name} names BOS or EOS, and lm-eval needs one",
                NOT_EVALUATED,
                f'name a token in tokenizer_config.json{again}, such as "eos_token": "</s>"',
            )
        tokenizer.eos_token = str(tokenizer.convert_ids_to_tokens(known[0]))
        origin = "config.json" if known[0] != tokenizer.bos_token_id else "tokenizer"
        logger.info("the tokenizer names no EOS: %s (id %d) stands for it", tokenizer.eos_token, known[0])
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return {"prefix_token_id": begin, "end_token_id": tokenizer.eos_token_id, "end_token_from": origin}


def read_gen_kwargs(text: str | None) -> dict[str, Any] | None:
    """Settings of generation from "name=value,name=value" as lm-eval reads it, or from a JSON object.

    Raises:
        NestQuantError: malformed, or a name that generation does not know.
    """
    if text is None:
        return None
    from lm_eval.utils import simple_parse_args_string
    from transformers import GenerationConfig

    remedy = "write temperature=0.7,do_sample=true, or a JSON object"
    values: Any = None
    if text.lstrip().startswith("{"):
        try:
            values = json.loads(text, object_pairs_hook=_once)
        except json.JSONDecodeError as error:
            raise NestQuantError(f"--gen-kwargs is not JSON ({error})", NOT_EVALUATED, remedy) from error
    elif all("=" in each for each in text.split(",")):
        values = simple_parse_args_string(text)
        _once([(each.partition("=")[0].strip(), None) for each in text.split(",")])
    if not values:
        raise NestQuantError(f"--gen-kwargs '{text}' cannot be read", NOT_EVALUATED, remedy)
    known = {*_OWN_SETTINGS, *(name for name in GenerationConfig().to_dict() if not name.startswith("_"))}
    refuse_unknown(values, sorted(known), "--gen-kwargs", NOT_EVALUATED, "use names of transformers' GenerationConfig")
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise NestQuantError(f"--gen-kwargs {name}={value} is not a finite number", NOT_EVALUATED, remedy)
    return dict(values)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping from pairs in which every name stands once."""
    for number, (name, _) in enumerate(pairs):
        if name in dict(pairs[:number]):
            raise NestQuantError(f"--gen-kwargs has {name} twice", NOT_EVALUATED, "keep one of them")
    return dict(pairs)


def first_line(error: Exception) -> str:
    """What an error of a library says, short enough for one line of ours."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
