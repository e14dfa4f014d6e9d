"""The loss of a tuning: KL divergence of a packed model from its original on a window of text, with a gradient."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..evaluation.divergence import divergence
from ..modules.cache import RoundingCache
from ..modules.layout import Layout

_CHUNK_BYTES = 64 << 20  # bytes of float32 logits at a time; a token of a vocabulary of 128,000 has half a megabyte


class Distillation:
    """Distills the original model, the teacher, into the packed one, the student.

    The text's own next tokens are not used: what counts is the original's whole next-token distribution.

    Args:
        teacher: the original model.
        student: the packed model, made differentiable.
        layout: layout of the student, with the codes of its cache.
    """

    def __init__(self, teacher: PreTrainedModel, student: PreTrainedModel, layout: Layout) -> None:
        self.teacher, self.student, self.layout = teacher.requires_grad_(False), student, layout

    def loss(self, ids: Tensor) -> Tensor:
        """Mean KL(teacher ‖ student) of the next token in nats over a window of token ids (tokens,).

        Differentiable in the student's parameters that require a gradient.
        """
        loss: Tensor = _Divergence.apply(self._student_logits(ids), self._teacher_logits(ids))
        return loss

    @torch.no_grad()
    def score(self, windows: Tensor) -> float:
        """Mean loss in nats over windows (windows, tokens), without a gradient."""
        return sum(float(self.loss(ids)) for ids in windows) / len(windows)

    @torch.no_grad()
    def _teacher_logits(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.teacher(input_ids=ids[None].to(self.teacher.device), use_cache=False).logits[0]
        return logits

    def _student_logits(self, ids: Tensor) -> Tensor:
        config = self.student.config.get_text_config(decoder=True)
        cache: dict[str, Any] = {"use_cache": False}
        if self.layout.cache:
            cache = {
                "past_key_values": RoundingCache(
                    config, self.layout.cache, self.layout.rotation_seed, self.layout.unrounded
                )
            }
        logits: Tensor = self.student(input_ids=ids[None].to(self.student.device), **cache).logits[0]
        return logits


class _Divergence(torch.autograd.Function):
    """Mean KL over chunks of tokens, and at once its gradient, (softmax(student) − softmax(teacher)) / tokens."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, reference: Tensor) -> Tensor:
        tokens, vocabulary = logits.shape
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        total = torch.zeros((), dtype=torch.float64)
        step = max(1, _CHUNK_BYTES // (4 * vocabulary))
        for start in range(0, tokens, step):
            part = slice(start, start + step)
            student = logits[part].float().log_softmax(-1)
            teacher = reference[part].to(logits.device).float().log_softmax(-1)
            total += divergence(teacher, student)[0].double().sum().cpu()
            if gradient is not None:
                gradient[part] = student.exp_().sub_(teacher.exp_()).div_(tokens)
        ctx.save_for_backward(gradient)
        return (total / tokens).float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None]:
        (gradient,) = ctx.saved_tensors
        return (None if gradient is None else gradient * gradients[0].to(gradient.dtype)), None
