"""How far a packed model is from its original on a window of text, with a gradient."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..evaluation.divergence import divergence
from ..modules.cache import RoundingCache
from ..modules.layout import Layout

_CHUNK_BYTES = 64 << 20  # of float32 logits at a time


class Distillation:
    """The original as the teacher of a packed model.

    Args:
        teacher: the original.
        student: packed and made differentiable.
        layout: layout of the student, which its cache needs.
    """

    def __init__(self, teacher: PreTrainedModel, student: PreTrainedModel, layout: Layout) -> None:
        self.teacher, self.student, self.layout = teacher.requires_grad_(False), student, layout

    def loss(self, ids: Tensor) -> Tensor:
        """Mean KL(teacher || student) of the next token, in nats, over a window of token ids (tokens,); differentiable
        in what the student's parameters ask a gradient of."""
        loss: Tensor = _Divergence.apply(self._student_logits(ids), self._teacher_logits(ids))
        return loss

    @torch.no_grad()
    def score(self, windows: Tensor) -> float:
        """Mean loss over windows (windows, tokens)."""
        return sum(float(self.loss(ids)) for ids in windows) / len(windows)

    @torch.no_grad()
    def _teacher_logits(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.teacher(input_ids=ids[None].to(self.teacher.device), use_cache=False).logits[0]
        return logits

    def _student_logits(self, ids: Tensor) -> Tensor:
        config = self.student.config.get_text_config(decoder=True)
        cache: dict[str, Any] = {"use_cache": False}
        if self.layout.cache:
            cache = {"past_key_values": RoundingCache(config, self.layout.cache, self.layout.rotation_seed)}
        logits: Tensor = self.student(input_ids=ids[None].to(self.student.device), **cache).logits[0]
        return logits


class _Divergence(torch.autograd.Function):
    """KL over chunks of tokens; its gradient, softmax(student) − softmax(teacher), is at hand while they are."""

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
