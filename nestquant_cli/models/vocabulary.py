"""Whether a model knows the tokens that it is to be given: a tokenizer may have more than the embeddings have rows."""

from typing import TYPE_CHECKING, Any

from ..base.errors import NestQuantError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def known_tokens(model: "PreTrainedModel") -> int:
    """Rows of the model's embeddings. A quantized one has an empty weight and says how many it stands for."""
    embeddings: Any = model.get_input_embeddings()
    return int(embeddings.weight.shape[0]) or int(embeddings.num_embeddings)


def refuse_unknown_tokens(highest: int, known: int, consequence: str) -> None:
    """Raises NestQuantError for a token that a model does not know.

    Args:
        highest: id of the highest token that it is to be given.
        known: tokens of the model, see `known_tokens`.
        consequence: consequence that the message names, such as "nothing was quantized".
    """
    if highest >= known:
        raise NestQuantError(
            f"the tokenizer makes token {highest}, the model knows {known} tokens",
            consequence,
            "use the tokenizer that belongs to the model, or give the model rows for its new tokens "
            "(resize_token_embeddings)",
        )


def refuse_long_windows(tokens: int, config: "PretrainedConfig", consequence: str) -> None:
    """Raises NestQuantError for windows of more `tokens` than the longest text of a model, where it has one."""
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if context and tokens > context:
        raise NestQuantError(
            f"windows of {tokens} tokens are longer than the model's context of {context}",
            consequence,
            f"use --seqlen {context} or less",
        )
