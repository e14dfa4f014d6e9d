"""A whole perplexity measurement, from names to a report with its protocol, as `nestquant eval-ppl` runs it."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from ..base.errors import NestQuantError
from ..calibration.text import load_text
from ..calibration.windows import cut_windows, tokenize, tokens_of, window_stride
from ..checkpoint.load import load_model
from ..models.device_choice import pick_device
from ..models.source import Source, load_tokenizer, resolve
from ..modules.resident import set_resident_if_quantized
from ..parallel.team import team
from .perplexity import Scores, score
from .provenance import model_protocol, versions


@dataclass(frozen=True)
class PerplexityOptions:
    """What to measure; the fields are the options of `nestquant eval-ppl`.

    Attributes:
        model, baseline: names that `models.resolve.resolve` accepts, or the sources that it returns.
        dataset, split: text to score, as `calibration.text.load_text` takes it.
        seqlen: tokens in a window.
        text_field: field of the data set's records that holds the text; None is "text", or else "messages".
        max_windows: number of windows to score, from the start of the text; None is all of them.
        bos: where BOS goes: "default" (once, if the tokenizer adds one), "each" (in every window) or "none".
        seed: seed of torch, set before the models are loaded.
        dtype: "auto", "float32", "bfloat16" or "float16".
        device: torch device; "auto" is a GPU if there is one.
        resident: form of quantized weights in memory, "packed", "int8" or "auto".
        revision: branch, tag or commit of `model` on the Hub; that of a baseline is part of its name, `ID@REVISION`.
    """

    model: str | Source
    dataset: str = "wikitext2"
    split: str = "test"
    seqlen: int = 2048
    text_field: str | None = None
    max_windows: int | None = None
    bos: str = "default"
    baseline: str | Source | None = None
    seed: int = 0
    dtype: str = "auto"
    device: str = "auto"
    resident: str = "auto"
    revision: str | None = None


@dataclass(frozen=True)
class PerplexityReport:
    """Scores, and the protocol by which they were measured: text, windows, models, versions; JSON-ready."""

    scores: Scores
    protocol: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """The scores and "protocol"; the scores of the baseline only if there is one."""
        scores = dataclasses.asdict(self.scores)
        if self.scores.baseline_perplexity is None:
            scores = {key: scores[key] for key in ("perplexity", "standard_error", "windows", "seconds")}
        return {**scores, "protocol": self.protocol}


def measure_perplexity(options: PerplexityOptions) -> PerplexityReport:
    """Loads text and models and scores them.

    Cheap checks come first: the names of the models, the device, the text, then the windows, and last the weights.

    Raises:
        NestQuantError: bad input, or whatever `resolve`, `load_text`, `tokenize`, `cut_windows`, `load_model` and
            `score` refuse.
    """
    import torch

    if options.max_windows is not None and options.max_windows < 1:
        raise NestQuantError(f"--max-windows {options.max_windows} is below 1", "nothing was scored", "use 1 or more")
    source = resolve(options.model, options.revision)
    baseline_source = resolve(options.baseline) if options.baseline else None
    device = pick_device(options.device)
    tokenizer = load_tokenizer(source)
    text = load_text(options.dataset, options.split, tokenizer, options.text_field)
    wanted = tokens_of(options.max_windows, options.seqlen, options.bos)
    tokens, whole = tokenize(text, tokenizer, options.bos, wanted)
    windows = cut_windows(tokens, tokenizer, options.seqlen, options.bos, text.name)
    if baseline_source is not None:
        baseline_tokens, _ = tokenize(text, load_tokenizer(baseline_source), options.bos, wanted)
        if not torch.equal(tokens, baseline_tokens):
            raise _not_comparable(source, baseline_source)
    torch.manual_seed(options.seed)
    model = load_model(source, options.dtype, device)
    baseline = load_model(baseline_source, options.dtype, device) if baseline_source is not None else None
    resident = set_resident_if_quantized(model, options.resident)
    if baseline is not None:
        set_resident_if_quantized(baseline, options.resident)
    scores = score(model, windows[: options.max_windows].long(), baseline_model=baseline)
    about_text = {"dataset": text.name, "split": text.split, "text_sha256": text.sha256, **text.source}
    about_windows = {
        "tokens": len(tokens) if whole else None,
        "windows": scores.windows,
        "windows_in_text": len(windows) if whole else None,
    }
    about_models = {
        "model": model_protocol(source, model),
        "baseline": model_protocol(baseline_source, baseline) if baseline_source and baseline else None,
    }
    protocol = about_text | about_windows | _method(options, resident) | about_models | {"versions": versions()}
    return PerplexityReport(scores, protocol)


def _method(options: PerplexityOptions, resident: str | None) -> dict[str, Any]:
    """The part of the protocol that follows from the options."""
    return {
        "seqlen": options.seqlen,
        "stride": window_stride(options.seqlen, options.bos),
        "scored_per_window": options.seqlen - 1,
        "bos": options.bos,
        "log_softmax": "float32",
        "seed": options.seed,
        "resident": resident,
        "processes": team().size,
    }


def _not_comparable(source: Source, baseline: Source) -> NestQuantError:
    return NestQuantError(
        f"{source.name} and {baseline.name} turn the text into different tokens",
        "they cannot be compared token by token",
        "give as --baseline the model that was quantized",
    )
