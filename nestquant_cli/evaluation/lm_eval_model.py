"""lm-eval's model for one that is loaded: its prompts and answers; our processes, progress and checks."""

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from lm_eval.models.huggingface import HFLM

from ..base.device import free_memory, on_host
from ..base.errors import NestQuantError
from ..base.finite import all_finite
from ..base.progress import Advance, steps
from ..parallel.team import team
from .prompts import Prompting, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

T = TypeVar("T")

NO_RESULT = "the tasks have no result"
LARGEST_BATCH = 64  # lm-eval's own largest one
_SHARE = 0.25  # of the free memory for a batch

logger = logging.getLogger("nestquant")


class LmEvalModel(HFLM):
    """lm-eval's model for one that is loaded: shares requests with the processes of the team, tells progress, and
    refuses logits that are NaN or infinite, which lm-eval would count as an ordinary wrong answer.

    Args:
        batch_size, prompting: see `evaluation.lm_eval_run.Settings`.
    """

    batch_schedule: float  # lm-eval's: how often "auto" looks for a batch size

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        batch_size: int | str,
        prompting: Prompting,
    ) -> None:
        self.team = team()
        self.detected: list[int] = []  # batch sizes that "auto" came to
        chosen = {} if prompting.template is None else {"chat_template": prompting.template}
        super().__init__(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=batch_size,
            max_batch_size=LARGEST_BATCH,
            chat_template_args=chosen,
        )

    # what lm-eval asks of a model to share requests
    rank = property(lambda self: self.team.rank)
    world_size = property(lambda self: self.team.size)

    def all_gather(self, tensor: Any) -> Any:
        """Tensors of all processes, stacked."""
        return torch.stack(self.team.gather(tensor.cpu()))

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """Objects of all processes, on process `dst`."""
        gathered = self.team.gather(obj)
        return gathered if self.team.rank == dst else None

    def barrier(self) -> None:
        """Waits for all processes."""
        self.team.gather(None)

    # the public methods that answer requests, each with our progress in place of lm-eval's bars

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[Any]:
        """Log-likelihoods of continuations, and whether they are the most likely ones."""
        return self._with_progress(
            "loglikelihood", len(requests), lambda: super(LmEvalModel, self).loglikelihood(requests, True)
        )

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[Any]:
        """Log-likelihoods of whole texts. Progress counts windows, whose number is not known at the start."""
        return self._with_progress(
            "loglikelihood_rolling", None, lambda: super(LmEvalModel, self).loglikelihood_rolling(requests, True)
        )

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[Any]:
        """Generated texts.

        Raises:
            NestQuantError: a task or --gen-kwargs asks for what the model cannot do.
        """
        try:
            return self._with_progress(
                "generate_until", len(requests), lambda: super(LmEvalModel, self).generate_until(requests, True)
            )
        except (AssertionError, TypeError, ValueError) as error:  # how lm-eval and transformers refuse settings
            raise NestQuantError(
                f"the model cannot generate as the task asks ({first_line(error)})",
                NO_RESULT,
                "change the settings with --gen-kwargs, such as max_gen_toks=64",
            ) from error

    def _with_progress(self, kind: str, total: int | None, work: Callable[[], T]) -> T:
        with steps(f"running {kind} requests", total) as advance:
            self.set_cache_hook(_Counter(advance, windows=total is None))
            return work()

    def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = False, override_bs: int | None = None) -> Any:
        self.batch_schedule = min(self.batch_schedule, max(1, len(requests)))  # lm-eval divides by their ratio
        found = super()._loglikelihood_tokens(requests, True, override_bs)
        if self.cache_hook.windows:
            self.cache_hook.advance(len(requests))
        return found

    def _model_call(self, *arguments: Any, **named: Any) -> Any:
        logits = super()._model_call(*arguments, **named)
        if not all_finite(logits):
            raise NestQuantError(
                "the logits of the model are NaN or infinite",
                NO_RESULT,
                "the model is damaged, or its dtype is too narrow: try 'nestquant verify', or another --dtype",
            )
        return logits

    def _detect_batch_size(self, requests: Sequence[Any] | None = None, pos: int = 0) -> int:
        """lm-eval tries batches until one fits. Memory of a computer is not refused but ends the process, so there the
        batch is computed from what is free."""
        if on_host(self.device):
            longest = self.max_length
            if requests:
                longest = min(longest, len(requests[pos][1]) + len(requests[pos][2]))
            found = largest_batch(self.model.config.get_text_config(), longest, free_memory(self.device))
        else:
            found = super()._detect_batch_size(requests, pos)
        self.detected.append(int(found))
        logger.info("batch size %d", found)
        return int(found)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as the model reads it.

        Raises:
            NestQuantError: the template refuses it.
        """
        try:
            return str(super().apply_chat_template(chat_history, add_generation_prompt))
        except Exception as error:  # a template is a program that comes with the model
            raise NestQuantError(
                f"the chat template refuses the conversation of a task ({first_line(error)})",
                NO_RESULT,
                "add --no-fewshot-as-multiturn, or leave out --apply-chat-template",
            ) from error


class _Counter:
    """lm-eval calls the hook for its cache of answers with each answer: here they are counted."""

    def __init__(self, advance: Advance, windows: bool) -> None:
        self.advance, self.windows = advance, windows

    def add_partial(self, *answer: Any) -> None:
        if not self.windows:
            self.advance(1)


def largest_batch(config: Any, tokens: int, free: int) -> int:
    """Sequences of `tokens` tokens whose forward pass takes a quarter of `free` bytes, from 1 to LARGEST_BATCH.

    Args:
        config: of the model: its vocabulary and hidden size.
        tokens: in the longest sequence.
        free: bytes of memory.
    """
    logits = 3 * config.vocab_size  # as they come, and in float32 before and after the log-softmax
    hidden = 32 * config.hidden_size  # of one layer: inputs, keys, values, and an MLP of a few times the width
    return max(1, min(LARGEST_BATCH, int(_SHARE * free) // (4 * tokens * (logits + hidden))))
