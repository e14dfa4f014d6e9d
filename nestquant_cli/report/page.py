"""A report as one HTML page that needs nothing beside it."""

import base64
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..evaluation.provenance import windows_said
from ..sharing.results import without_folder
from .page_data import PageData

_DAMAGED = 12  # matrices listed


def html(name: str, found: PageData, pictures: dict[str, bytes]) -> str:
    """The page, in which names and texts of others are escaped.

    Args:
        name: of the checkpoint.
        found: what it shows.
        pictures: PNGs by file name.
    """
    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    recipe = found.inspection.recipe.items()
    return pages.get_template("page.html").render(
        name=name,
        found=found,
        pictures={file: base64.b64encode(png).decode() for file, png in pictures.items()},
        summary=_summary(found),
        damaged=_damaged(found),
        betas=_betas(found),
        windows="" if found.scores is None else windows_said(found.scores.protocol),
        recipe=[(key, "" if value is None else without_folder(str(value))) for key, value in recipe],
    )


def _summary(found: PageData) -> list[tuple[str, str]]:
    own = found.inspection
    return [
        ("bits of the codes (16 is not quantized)", ", ".join(f"{part} {value:g}" for part, value in own.bits.items())),
        ("bits per quantized weight, from the bytes on disk", f"{own.bits_per_weight or 16:.4f}"),
        ("quantized weights", f"{own.quantized_weights:,}"),
        ("bytes of all files", f"{own.file_bytes:,}"),
    ]


def _damaged(found: PageData) -> list[tuple[str, ...]]:
    bits = {matrix.name: matrix.bits_per_weight for matrix in found.inspection.matrices}
    return [
        (name, f"{record['hessian_error']:.5f}", f"{record['relative_error']:.5f}", f"{bits[name]:.3f}")
        for name, record in found.most_damaged(_DAMAGED)
        if name in bits
    ]


def _betas(found: PageData) -> list[Sequence[str]]:
    """The table with its heads; empty without nested codes."""
    rows = [(kind, *(f"{share:.3f}" for share in shares)) for kind, shares in found.betas().items()]
    longest = max(map(len, rows), default=0)
    return [("matrix", *(f"β {place}" for place in range(1, longest))), *rows] if rows else []
