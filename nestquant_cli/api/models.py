"""Loads and scores models from Python: `load` and `evaluate`."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoint.load import load_model
from ..evaluation.measure_perplexity import PerplexityOptions, PerplexityReport, measure_perplexity
from ..models.device_choice import pick_device
from ..models.source import load_tokenizer
from ..modules.resident import check_form, set_resident_if_quantized
from ..parallel.team import joined
from .arguments import source_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def evaluate(
    model: str | Path,
    dataset: str = "wikitext2",
    *,
    baseline: str | Path | None = None,
    split: str = "test",
    text_field: str | None = None,
    seqlen: int = 2048,
    max_windows: int | None = None,
    bos: str = "default",
    seed: int = 0,
    resident: str = "auto",
    dtype: str = "auto",
    device: str = "auto",
    revision: str | None = None,
) -> PerplexityReport:
    """Perplexity of a model, packed or not, over windows of a text; with a baseline, KL divergence from it as well.

    Args:
        model: name of the model.
        dataset: text to score: "wikitext2", "c4", "demo", a text file or a data set of the Hub.
        baseline: name of the model to compare with, usually the original.
        split: split of the data set.
        text_field: field of the data set's records; None takes "text", or else "messages".
        seqlen: tokens in a window.
        max_windows: score the first windows only; None is all of them.
        bos: what windows begin with: "default", "each" or "none".
        seed: seed of torch.
        resident: form of quantized weights in memory, as `set_resident` takes it.
        dtype: "auto" is that of the checkpoint, and bfloat16 for a GGUF file; else "float32", "bfloat16" or "float16".
        device: a torch device; "auto" is the GPU where there is one, else the CPU.
        revision: branch, tag or commit of a model on the Hub.

    Returns:
        a report: its `scores` have perplexity, standard_error, windows and, with a baseline, baseline_perplexity,
        kl_divergence (nats a token) and top1_agreement; its `protocol` says how they were measured.

    Raises:
        NestQuantError: a model or text that cannot be read, a text shorter than a window, models with different
            tokenizers, or logits that are not finite.

    Example:
        >>> report = nestquant_cli.evaluate("demo-w4", "demo", baseline="demo", max_windows=2)
        >>> print(report.scores.perplexity, report.scores.kl_divergence)
    """
    check_form(resident)
    source = source_of(model, revision)
    original = None if baseline is None else source_of(baseline)
    with joined(pick_device(device)) as place:
        return measure_perplexity(
            PerplexityOptions(
                source,
                dataset,
                split,
                seqlen,
                text_field,
                max_windows,
                bos,
                original,
                seed,
                dtype,
                place,
                resident,
            )
        )


def load(
    model: str | Path,
    resident: str = "auto",
    *,
    dtype: str = "auto",
    device: str = "auto",
    revision: str | None = None,
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """A model, packed or not, in eval mode on a device, and its tokenizer. Code that comes with a model is never run.

    Args:
        model: name of the model.
        resident: form of quantized weights in memory: "packed", "int8" or "auto", as `set_resident` takes it.
        dtype: "auto" is that of the checkpoint, and bfloat16 for a GGUF file; else "float32", "bfloat16" or "float16".
        device: a torch device; "auto" is the GPU where there is one, else the CPU.
        revision: branch, tag or commit of a model on the Hub.

    Raises:
        NestQuantError: files are missing, truncated or altered, the model is not a decoder, there is no such dtype,
            device or form, or it has no tokenizer.

    Example:
        >>> model, tokenizer = nestquant_cli.load("demo-w4")
        >>> ids = model.generate(**tokenizer("A lattice is", return_tensors="pt"), max_new_tokens=20)
    """
    check_form(resident)
    source, place = source_of(model, revision), pick_device(device)
    tokenizer = load_tokenizer(source)
    loaded = load_model(source, dtype, place)
    set_resident_if_quantized(loaded, resident)
    return loaded, tokenizer
