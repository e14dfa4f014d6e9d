"""A report as one HTML page that contains its pictures."""

import base64
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..evaluation.provenance import windows_in_words
from ..sharing.results import without_folder
from .page_data import PageData

_DAMAGED = 12  # number of most damaged matrices that are listed


def html(name: str, data: PageData, pictures: dict[str, bytes]) -> str:
    """The HTML of the page, with names and texts escaped.

    Args:
        name: name of the checkpoint.
        data: what the page shows.
        pictures: PNG files by name.
    """
    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    recipe = data.inspection.recipe.items()
    return pages.get_template("page.html").render(
        name=name,
        data=data,
        pictures={file: base64.b64encode(png).decode() for file, png in pictures.items()},
        summary=_summary(data),
        damaged=_damaged(data),
        betas=_betas(data),
        windows="" if data.scores is None else windows_in_words(data.scores.protocol),
        recipe=[(key, "" if value is None else without_folder(str(value))) for key, value in recipe],
    )


def _summary(data: PageData) -> list[tuple[str, str]]:
    inspection = data.inspection
    return [
        (
            "bits of the codes (16 is not quantized)",
            ", ".join(f"{part} {value:g}" for part, value in inspection.bits.items()),
        ),
        ("bits per quantized weight, from the bytes on disk", f"{inspection.bits_per_weight or 16:.4f}"),
        ("quantized weights", f"{inspection.quantized_weights:,}"),
        ("bytes of all files", f"{inspection.file_bytes:,}"),
    ]


def _damaged(data: PageData) -> list[tuple[str, ...]]:
    bits = {matrix.name: matrix.bits_per_weight for matrix in data.inspection.matrices}
    return [
        (name, f"{record['hessian_error']:.5f}", f"{record['relative_error']:.5f}", f"{bits[name]:.3f}")
        for name, record in data.most_damaged(_DAMAGED)
        if name in bits
    ]


def _betas(data: PageData) -> list[Sequence[str]]:
    """Rows of the table of scales β, headings first; empty without nested codes."""
    rows = [(kind, *(f"{share:.3f}" for share in shares)) for kind, shares in data.betas().items()]
    longest = max(map(len, rows), default=0)
    return [("matrix", *(f"β {index}" for index in range(1, longest))), *rows] if rows else []
