"""A loaded model that continues texts: it shows text as it is generated and reuses its cache for the next prompt."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from transformers import TextStreamer

from ..base.device import peak_memory
from ..base.errors import NestQuantError
from ..checkpoint.load import load_model
from ..models.source import Source, load_tokenizer
from ..models.vocabulary import known_tokens, refuse_unknown_tokens
from ..modules.resident import set_resident_if_quantized
from .failing import describing_failures
from .sampling import NOT_GENERATED, Sampling
from .speed_and_memory import GenerationStatistics, cache_bytes, weight_bytes

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Show = Callable[[str], None]
Ending = Literal["end of text", "max_new_tokens", "context", "interrupted"]


@dataclass(frozen=True)
class Answer:
    """A generated text.

    Attributes:
        text: new text, without the prompt and without special tokens.
        tokens: ids of the new tokens.
        statistics: speed and memory of the generation.
        ending: why the text ends: "end of text" at an end token, "max_new_tokens" after as many tokens as were asked
            for, "context" if the model's context is full, or "interrupted" by the user.
    """

    text: str
    tokens: list[int]
    statistics: GenerationStatistics
    ending: Ending

    @property
    def interrupted(self) -> bool:
        """Whether the user stopped the generation."""
        return self.ending == "interrupted"


class TextGenerator:
    """Continues texts one after the other.

    Keys and values of the tokens that a prompt shares with the text before it are not computed again, if the model's
    cache keeps all tokens.

    Args:
        model: any causal language model, in eval mode.
        tokenizer: its tokenizer.
        sampling: how tokens are chosen; its seed is set once, here.
        resident: form of the quantized weights in memory, for the statistics.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        sampling: Sampling,
        resident: str | None = None,
    ) -> None:
        import torch

        self.model, self.tokenizer, self.resident = model, tokenizer, resident
        end: Any = tokenizer.eos_token_id
        self.config = sampling.config(model, end)
        self.context: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._weight_bytes = weight_bytes(model)
        self._cache: Any = None
        self._seen: list[int] = []  # the tokens whose keys and values are in the cache
        torch.manual_seed(sampling.seed)

    @property
    def room(self) -> int | None:
        """Largest number of tokens of a prompt after which all new tokens fit, but at least half of the context.

        None for a model whose context has no limit.
        """
        new = int(self.config.max_new_tokens or 0)
        return None if self.context is None else max(self.context - new, self.context // 2)

    def refuse_unfit(self, ids: Sequence[int]) -> None:
        """Checks a prompt.

        Raises:
            NestQuantError: no tokens, tokens that the model does not know, or too many for a new token to fit.
        """
        if not ids:
            raise NestQuantError("the prompt is empty", NOT_GENERATED, "give some text")
        if self.context is not None and len(ids) >= self.context:
            cause = f"the prompt has {len(ids)} tokens and the model takes {self.context}"
            raise NestQuantError(cause, NOT_GENERATED, "shorten it")
        refuse_unknown_tokens(max(ids), known_tokens(self.model), NOT_GENERATED)

    def generate(self, ids: Sequence[int], show: Show = lambda text: None) -> Answer:
        """Continues a text up to an end token, `max_new_tokens` or the end of the model's context.

        Args:
            ids: token ids of the prompt.
            show: called with each piece of text as it is generated. A KeyboardInterrupt ends the text, not the program.

        Raises:
            NestQuantError: no tokens, tokens that the model does not know, too many for a new token to fit, or
                transformers' own code of the model fails.
        """
        import copy

        import torch

        ids = list(ids)
        self.refuse_unfit(ids)
        config = copy.deepcopy(self.config)
        if self.context is not None:
            config.max_new_tokens = min(int(config.max_new_tokens or 0), self.context - len(ids))
        cache, kept = self._kept(ids)
        stream = _Stream(self.tokenizer, show)
        prompt = torch.tensor([ids], device=self.model.device)
        settings = {"attention_mask": torch.ones_like(prompt), "generation_config": config, "past_key_values": cache}
        model: Any = self.model
        output = None
        try:
            with torch.inference_mode(), describing_failures(model):
                output = model.generate(prompt, **settings, streamer=stream, return_dict_in_generate=True)
        except KeyboardInterrupt:
            stream.end()
        statistics = self._statistics(stream, len(ids) - kept, kept, output and cache_bytes(output.past_key_values))
        if output is not None:
            self._remember(output.past_key_values, output.sequences[0].tolist())
        ending = "interrupted" if output is None else self._ending(stream.tokens, int(config.max_new_tokens or 0))
        return Answer(stream.text, stream.tokens, statistics, ending)

    def _ending(self, tokens: list[int], most: int) -> Ending:
        ends: Any = self.config.eos_token_id or ()
        if len(tokens) < most or (tokens and tokens[-1] in ends):
            return "end of text"
        return "context" if most < int(self.config.max_new_tokens or 0) else "max_new_tokens"

    def _kept(self, ids: list[int]) -> tuple[Any, int]:
        """The cache, cut to the tokens that `ids` shares with the text before, and their number.

        The last token of `ids` is always computed again: its logits give the first new token.
        """
        cache, seen = self._cache, self._seen
        self._cache, self._seen = None, []
        pairs = zip(seen, ids[:-1], strict=False)
        common = next((index for index, (old, new) in enumerate(pairs) if old != new), min(len(seen), len(ids) - 1))
        if cache is None or common == 0:
            return None, 0
        cache.crop(common - len(seen))  # a negative number takes tokens away, in all versions of transformers
        return cache, common

    def _remember(self, cache: Any, sequence: list[int]) -> None:
        from transformers.cache_utils import DynamicLayer

        layers = getattr(cache, "layers", [])
        whole = layers and all(isinstance(layer, DynamicLayer) and not layer.is_sliding for layer in layers)
        if whole:
            self._cache, self._seen = cache, sequence[: cache.get_seq_length()]

    def _statistics(self, stream: "_Stream", read: int, reused: int, held: int | None) -> GenerationStatistics:
        return GenerationStatistics(
            prompt_tokens=read,
            reused_tokens=reused,
            prompt_seconds=stream.first - stream.begin,
            new_tokens=len(stream.tokens),
            seconds=stream.last - stream.first,
            weight_bytes=self._weight_bytes,
            resident=self.resident,
            cache_bytes=held,
            peak_bytes=peak_memory(self.model.device),
        )


def load_generator(source: Source, sampling: Sampling, resident: str, dtype: str, device: str) -> TextGenerator:
    """Loads tokenizer and model.

    Args:
        source: a model of any kind, as `models.resolve.resolve` returns it.
        sampling: how tokens are chosen.
        resident: form of quantized weights in memory, "packed", "int8" or "auto".
        dtype, device: as `checkpoint.load.load_model` takes them.

    Raises:
        NestQuantError: see `load_tokenizer`, `load_model`.
    """
    tokenizer = load_tokenizer(source)
    model = load_model(source, dtype, device)
    return TextGenerator(model, tokenizer, sampling, set_resident_if_quantized(model, resident))


class _Stream(TextStreamer):
    """Passes text on as it is generated, and records tokens and times."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", show: Show) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.show = show
        self.tokens: list[int] = []
        self.text = ""
        self.begin = self.first = self.last = time.monotonic()

    def put(self, value: "Tensor") -> None:
        if not self.next_tokens_are_prompt:
            self.last = time.monotonic()
            self.first = self.first if self.tokens else self.last
            self.tokens += value.flatten().tolist()
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.text += text
        if text:
            self.show(text)
