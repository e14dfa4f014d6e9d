"""How prompts of tasks are made for a model: chat template, special tokens and settings of generation.

All of it is checked with the tokenizer alone, before the weights are loaded.
"""

import hashlib
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..base.errors import NestQuantError, first_line
from ..base.names import refuse_unknown
from ..models.source import Source, load_config
from .gates import NOT_EVALUATED

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("nestquant")

DEFAULT_TEMPLATE = "default"  # transformers' name for the only template of a tokenizer
# lm-eval's own settings of generation; max_new_tokens of transformers is another name of max_gen_toks
_LM_EVAL_SETTINGS = ("until", "max_gen_toks", "max_tokens", "max_completion_tokens")


@dataclass(frozen=True)
class Prompting:
    """How prompts are made.

    Attributes:
        template: text of the chat template (Jinja); None sends prompts as plain text.
        template_name: name of the template, None without a template.
        system: system instruction, None for none.
        as_turns: whether few-shot examples are turns of a conversation instead of a part of one message.
    """

    template: str | None = None
    template_name: str | None = None
    system: str | None = None
    as_turns: bool = False

    def described(self) -> str:
        """In words: "without chat template", or the template and the form of few-shot examples."""
        parts = [f"chat template '{self.template_name}'" if self.template else "without chat template"]
        if self.template:
            parts.append(f"few-shot examples as {'turns' if self.as_turns else 'one message'}")
        if self.system is not None:
            parts.append(f"system instruction {self.system!r}")
        return ", ".join(parts)

    def as_json(self) -> dict[str, Any]:
        """For the protocol, JSON-ready: template by name and SHA-256, system instruction, form of examples."""
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
    """Finds the chat template and tries it with the system instruction.

    Args:
        tokenizer: the model's tokenizer.
        template: False for none, True for the tokenizer's only or default one, or the name of one of several.
        system: system instruction; without a template it is put before the prompt as plain text.
        as_turns: whether few-shot examples are turns; None is lm-eval's default, which is yes with a template.

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
    stored: Any = tokenizer.chat_template
    templates = stored if isinstance(stored, Mapping) else {DEFAULT_TEMPLATE: stored} if stored else {}
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
    """Gives a tokenizer without an end-of-text token (EOS) the one of the model's configuration, or BOS.

    lm-eval puts BOS, or EOS where there is none, before a text without context, and ends generated text at EOS.

    Args:
        tokenizer: the model's tokenizer; its `eos_token` is set if it has none.
        source: where the model comes from.

    Returns:
        for the protocol: ids of the tokens that lm-eval uses, and where the end of text comes from.

    Raises:
        NestQuantError: neither the tokenizer nor the configuration names one.
    """
    origin = "tokenizer"
    if tokenizer.eos_token_id is None:
        config = load_config(source).get_text_config()
        ends = config.eos_token_id
        named = [*(ends if isinstance(ends, (list, tuple)) else [ends]), tokenizer.bos_token_id, config.bos_token_id]
        known = [token for token in named if isinstance(token, int) and 0 <= token < len(tokenizer)]
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
    """Reads settings of generation.

    Args:
        text: "name=value,name=value", read as lm-eval does, or a JSON object; None for no settings.

    Returns:
        values by name, or None.

    Raises:
        NestQuantError: malformed, an unknown or repeated name, or a value that is NaN or infinite.
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
    elif all("=" in pair for pair in text.split(",")):
        values = simple_parse_args_string(text)
        _once([(pair.partition("=")[0].strip(), None) for pair in text.split(",")])
    if not values:
        raise NestQuantError(f"--gen-kwargs '{text}' cannot be read", NOT_EVALUATED, remedy)
    known = {*_LM_EVAL_SETTINGS, *(name for name in GenerationConfig().to_dict() if not name.startswith("_"))}
    refuse_unknown(values, sorted(known), "--gen-kwargs", NOT_EVALUATED, "use names of transformers' GenerationConfig")
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise NestQuantError(f"--gen-kwargs {name}={value} is not a finite number", NOT_EVALUATED, remedy)
    return dict(values)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping from pairs, in which every name has to occur once."""
    for number, (name, _) in enumerate(pairs):
        if name in dict(pairs[:number]):
            raise NestQuantError(f"--gen-kwargs has {name} twice", NOT_EVALUATED, "keep one of them")
    return dict(pairs)
