"""A report as one HTML page that needs nothing beside it."""

import base64
from collections.abc import Iterable, Sequence
from html import escape

from ..sharing.results import without_folder
from .contents import Contents

_DAMAGED = 12  # matrices listed
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #ccc; }
table { border-collapse: collapse; margin: .6rem 0; } th, td { padding: .2rem .8rem .2rem 0; text-align: right; }
th:first-child, td:first-child { text-align: left; } tr { border-bottom: 1px solid #eee; }
img { max-width: 100%; } .note { color: #666; font-size: .9rem; }
.side { display: flex; gap: 1rem; flex-wrap: wrap; }
.side div { flex: 1 1 20rem; background: #f6f6f6; padding: .6rem 1rem; }
.side p { white-space: pre-wrap; overflow-wrap: anywhere; }
"""


def html(name: str, found: Contents, pictures: dict[str, bytes]) -> str:
    """The page.

    Args:
        name: name of the checkpoint.
        found: what it shows.
        pictures: PNGs by file name.
    """
    images = {
        key: f'<img alt="{key}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        for key, png in pictures.items()
    }
    body = [
        f"<h1>{escape(name)}</h1>",
        *_summary(found),
        *_quality(found, images),
        "<h2>Error and bits per layer</h2>",
        images.get("errors.png", ""),
        images.get("bits.png", ""),
        "<h2>Most damaged matrices</h2>",
        *_damaged(found),
        *(["<h2>β histograms</h2>", images.get("betas.png", ""), *_betas(found)] if found.betas() else []),
        *_samples(found),
        "<h2>Recipe</h2>",
        *_table(("setting", "value"), [(key, _setting(value)) for key, value in found.inspection.recipe.items()]),
    ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(name)}</title>'
    return f"<!doctype html>\n<html lang=en><head>{head}<style>{_STYLE}</style></head>\n<body>\n" + (
        "\n".join(filter(None, body)) + "\n</body></html>\n"
    )


def _summary(found: Contents) -> list[str]:
    own = found.inspection
    bits = ", ".join(f"{part} {value:g}" for part, value in own.bits.items())
    rows = [
        ("bits of the codes (16 is not quantized)", bits),
        ("bits per quantized weight, from the bytes on disk", f"{own.bits_per_weight or 16:.4f}"),
        ("quantized weights", f"{own.quantized_weights:,}"),
        ("bytes of all files", f"{own.file_bytes:,}"),
    ]
    return _table(("checkpoint", ""), rows)


def _quality(found: Contents, images: dict[str, str]) -> list[str]:
    if found.scores is None:
        return ['<p class="note">Perplexity and KL divergence beside the original come with --baseline.</p>']
    scores, protocol = found.scores.scores, found.scores.protocol
    rows = [
        (protocol["model"]["name"], f"{scores.perplexity:.4f}", _error(scores.standard_error)),
        (protocol["baseline"]["name"], f"{scores.baseline_perplexity:.4f}", _error(scores.baseline_standard_error)),
    ]
    note = (
        f"{protocol['dataset']} ({protocol['split']}), {scores.windows} of {protocol['windows_in_text']} windows of "
        f"{protocol['seqlen']} tokens, BOS {protocol['bos']}; KL divergence from the original "
        f"{scores.kl_divergence:.5f} nats a token, top-1 agreement {scores.top1_agreement:.4f}"
    )
    note += f"; reference: {protocol['baseline']['description']}"
    table = _table(("model", "perplexity", "± s.e."), rows)
    picture = images.get("perplexity.png", "")
    return ["<h2>Beside the original</h2>", picture, *table, f'<p class="note">{escape(note)}</p>']


def _setting(value: object) -> str:
    return "" if value is None else without_folder(str(value))


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _damaged(found: Contents) -> list[str]:
    bits = {matrix.name: matrix.bits_per_weight for matrix in found.inspection.matrices}
    rows = [
        (name, f"{record['hessian_error']:.5f}", f"{record['relative_error']:.5f}", f"{bits[name]:.3f}")
        for name, record in found.most_damaged(_DAMAGED)
        if name in bits
    ]
    return _table(("matrix", "output error", "weight error", "bits per weight"), rows)


def _betas(found: Contents) -> list[str]:
    rows = [(kind, *(f"{share:.3f}" for share in shares)) for kind, shares in found.betas().items()]
    longest = max(map(len, rows))
    return _table(("matrix", *(f"β {place}" for place in range(1, longest))), rows)


def _samples(found: Contents) -> list[str]:
    if not found.samples:
        return []
    boxes = [f"<div><b>{escape(each.model)}</b><p>{escape(each.text)}</p></div>" for each in found.samples]
    prompt = f"<p>{escape(found.prompt)} …</p>"
    return ["<h2>A sample, the most likely token each time</h2>", prompt, '<div class="side">', *boxes, "</div>"]


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    lines = [f"<tr>{''.join(f'<th>{escape(head)}</th>' for head in heads)}</tr>"]
    lines += [f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows]
    return ["<table>", *lines, "</table>"]
