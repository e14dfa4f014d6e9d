"""A whole report, from names to files, as `nestquant report` writes it."""

from dataclasses import dataclass, replace
from pathlib import Path

from ..evaluation.measure_perplexity import PerplexityOptions, measure_perplexity
from ..generation.generator import load_generator
from ..generation.sampling import Sampling
from ..models.device_choice import pick_device
from ..models.source import Source, resolve
from ..storage.files import replacing, write_text
from ..storage.resume import refuse_foreign
from .page import html
from .page_data import PageData, Sample, read_page_data
from .pictures import draw

PAGE = "report.html"


@dataclass(frozen=True)
class ReportOptions:
    """What to report; the fields are the options of `nestquant report`.

    Attributes:
        folder: checkpoint folder.
        output: folder for page and pictures.
        scoring: model, baseline, text, dtype and device; nothing is scored without a baseline.
        prompt: text that the models continue as a sample; "" leaves the sample out.
        max_new_tokens: largest number of tokens of the sample.
    """

    folder: Path
    output: Path
    scoring: PerplexityOptions
    prompt: str
    max_new_tokens: int = 48


def make_report(options: ReportOptions) -> PageData:
    """Scores the models, generates samples, and writes page and pictures into the output folder, the page last.

    Raises:
        NestQuantError: no packed checkpoint, an output folder with other files, or bad input of the evaluation.
    """
    refuse_foreign(options.output, PAGE)
    read_page_data(options.folder)  # before any work
    model, baseline = resolve(options.scoring.model), options.scoring.baseline and resolve(options.scoring.baseline)
    scores = measure_perplexity(replace(options.scoring, model=model, baseline=baseline)) if baseline else None
    samples = [_sample(source, options) for source in (model, baseline) if source and options.prompt]
    data = read_page_data(options.folder, scores, options.prompt, samples)
    pictures = draw(data)
    for name, png in pictures.items():
        with replacing(options.output / name) as temporary:
            temporary.write_bytes(png)
    write_text(options.output / PAGE, html(options.folder.resolve().name, data, pictures))
    return data


def _sample(source: Source, options: ReportOptions) -> Sample:
    how = options.scoring
    sampling = Sampling(options.max_new_tokens, temperature=0)
    generator = load_generator(source, sampling, how.resident, how.dtype, pick_device(how.device))
    return Sample(source.name, generator.generate(generator.tokenizer(options.prompt)["input_ids"]).text)
