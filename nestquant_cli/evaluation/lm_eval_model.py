"""A loaded model as lm-eval's model class, with the processes, progress and checks of this package."""

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from lm_eval.models.huggingface import HFLM

from ..base.device import free_memory, on_host
from ..base.errors import NestQuantError, first_line
from ..base.finite import all_finite
from ..base.progress import Advance, steps
from ..parallel.team import team
from .prompts import Prompting

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

T = TypeVar("T")

NO_RESULT = "the tasks have no result"
LARGEST_BATCH = 64  # sequences; lm-eval's own limit
_SHARE = 0.25  # share of the free memory that a batch may take

logger = logging.getLogger("nestquant")


class LmEvalModel(HFLM):
    """A loaded model as lm-eval's model class.

    It shares requests with the processes of the team, shows progress, and refuses logits that are NaN or infinite,
    which lm-eval would count as an ordinary wrong answer.

    Args:
        model: the loaded model, in eval mode.
        tokenizer: its tokenizer.
        batch_size: sequences in a batch, or "auto" or "auto:N" for the largest that fit, searched once or N times.
        prompting: chat template and system instruction of the prompts.
    """

    batch_schedule: float  # of lm-eval: how many times "auto" searches a batch size

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        batch_size: int | str,
        prompting: Prompting,
    ) -> None:
        self.team = team()
        self.detected: list[int] = []  # batch sizes that "auto" found
        template = {} if prompting.template is None else {"chat_template": prompting.template}
        super().__init__(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=batch_size,
            max_batch_size=LARGEST_BATCH,
            chat_template_args=template,
        )

    # the attributes and methods through which lm-eval shares requests
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

    # lm-eval's methods that answer requests, each with our progress instead of lm-eval's bars

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[Any]:
        """Log-likelihood of the continuation of each request, and whether it is the most likely one."""
        return self._with_progress(
            "loglikelihood", len(requests), lambda: super(LmEvalModel, self).loglikelihood(requests, True)
        )

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[Any]:
        """Log-likelihood of the whole text of each request. Progress counts windows, without a total."""
        return self._with_progress(
            "loglikelihood_rolling", None, lambda: super(LmEvalModel, self).loglikelihood_rolling(requests, True)
        )

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[Any]:
        """Generated text of each request.

        Raises:
            NestQuantError: a task or --gen-kwargs asks for something that the model cannot do.
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
        answers = super()._loglikelihood_tokens(requests, True, override_bs)
        if self.cache_hook.windows:
            self.cache_hook.advance(len(requests))
        return answers

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
        """The largest batch that fits. lm-eval tries batches until one fits; on a CPU, too large a batch would end the
        process instead of raising an error, so there the batch is computed from the free memory."""
        if on_host(self.device):
            longest = self.max_length
            if requests:
                longest = min(longest, len(requests[pos][1]) + len(requests[pos][2]))
            size = largest_batch(self.model.config.get_text_config(), longest, free_memory(self.device))
        else:
            size = int(super()._detect_batch_size(requests, pos))
        self.detected.append(size)
        logger.info("batch size %d", size)
        return size

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as text, by the chat template.

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
    """Counts answers: lm-eval calls the hook of its cache with each of them."""

    def __init__(self, advance: Advance, windows: bool) -> None:
        self.advance, self.windows = advance, windows

    def add_partial(self, *answer: Any) -> None:
        if not self.windows:
            self.advance(1)


def largest_batch(config: Any, tokens: int, free: int) -> int:
    """Number of sequences whose forward pass takes at most a quarter of the free memory, from 1 to `LARGEST_BATCH`.

    A token is counted as 3 · vocabulary + 32 · hidden size float32 numbers.

    Args:
        config: configuration of the model, with `vocab_size` and `hidden_size`.
        tokens: tokens of the longest sequence.
        free: free memory in bytes.
    """
    logits = 3 * config.vocab_size  # as the model returns them, and in float32 before and after the log-softmax
    hidden = 32 * config.hidden_size  # one layer: inputs, keys, values, and an MLP of a few times the width
    return max(1, min(LARGEST_BATCH, int(_SHARE * free) // (4 * tokens * (logits + hidden))))
