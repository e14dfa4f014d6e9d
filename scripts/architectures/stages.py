"""The stages of a case: each takes the case so far and returns what it adds; the next ones read its files."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import command, images, measures, tiny
from .configurations import reads_images
from .coverage import coverage, structure
from .text import save_tokenizer, token_ids

# Bits that are tried in this order, until one is not refused.
WHOLE, NO_CACHE, WEIGHTS = ["--bits"], ["--kv-bits", "16", "--bits"], ["--weight-bits"]
LADDER = {"whole": WHOLE, "16-bit keys and values": NO_CACHE, "weights only": WEIGHTS}
Row = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """Where the files of a case are: all in one folder."""

    folder: Path

    @property
    def text(self) -> Path:
        """What calibrates and is scored."""
        return self.folder / "text.txt"

    @property
    def model(self) -> Path:
        """The original model."""
        return self.folder / "model"

    def packed(self, bits: int) -> Path:
        """The checkpoint at these bits."""
        return self.folder / f"w{bits}"


def built(place: Place, row: Row) -> Row:
    """A random model is built and saved."""
    model = tiny.build(row["name"])
    model.save_pretrained(place.model)
    save_tokenizer(place.model, place.text.read_text(encoding="utf-8"))
    return {"class": type(model).__name__, "images": reads_images(row["name"])}


def plain(place: Place, row: Row) -> Row:
    """Plain transformers runs it: the yardstick of what follows."""
    model = tiny.open_model(place.model, row["built"]["images"])
    found: Row = {"class": type(model).__name__, **structure(model), "steps": measures.all_steps(model)}
    if not torch.isfinite(measures.logits(model, token_ids(measures.PROMPT))).all():
        raise ArithmeticError("plain transformers gives logits that are not finite")
    return found


def pictured(place: Place, row: Row) -> Row:
    """Plain transformers reads an image: two images must give two answers."""
    if not row["built"]["images"]:
        return {}
    model = tiny.open_model(place.model, True)
    if getattr(model.config, "vision_config", None) is None:
        return {}  # a text model in the mapping of those with images
    first, second = (images.inputs(model, seed) for seed in (0, 1))
    apart = measures.divergence(measures.logits(model, **first), measures.logits(model, **second))
    if not apart > 0:
        raise ArithmeticError("two images give the same answer")
    return {"apart": apart, "steps": images.steps_against_forward(model)}


def quantized(place: Place, row: Row) -> Row:
    """Quantized at 4 bits: whole, else with 16-bit keys and values, else its weights alone; --plan says the same."""
    found: Row = {"tried": {}}
    for level, bits in LADDER.items():
        promised = command.plan(place.model, place.packed(4), place.text, [*bits, "4"])
        done = command.quantize(place.model, place.packed(4), place.text, [*bits, "4"])
        found["tried"][level] = {**done, "plan": promised}
        if not done["code"]:
            return found | {"level": level}
        shutil.rmtree(place.packed(4), ignore_errors=True)
    return found


def checked(place: Place, row: Row) -> Row:
    """The commands that read the checkpoint."""
    output = place.packed(4)
    return {
        "eval-ppl": command.evaluate(place.model, output, place.text),
        "verify": command.nestquant("verify", output),
        "inspect": command.inspect(output),
        "generate": command.nestquant("generate", output, "Licensed works", "--max-new-tokens", 8, "--device", "cpu"),
    }


def loaded(place: Place, row: Row, bits: int = 4) -> Row:
    """from_pretrained and what the loaded model answers, against the original."""
    import nestquant_cli  # noqa: F401  the packed models of transformers

    pictures = row["built"]["images"]
    packed, original = (tiny.open_model(path, pictures) for path in (place.packed(bits), place.model))
    found: Row = {"class": type(packed).__name__, **coverage(packed, original)}
    ids = token_ids(48)
    ours, theirs = measures.logits(packed, ids), measures.logits(original, ids)
    spread = (theirs - theirs.mean(-1, keepdim=True)).norm()
    found |= {
        "finite": bool(torch.isfinite(ours).all()),
        "kl": measures.divergence(theirs, ours),
        "kl_of_most": float(measures.divergences(theirs, ours).flatten().quantile(0.8)),
        "relative_error": float((ours - theirs).norm() / spread),
        "steps": measures.all_steps(packed),
    }
    if pictures and "steps" in row.get("pictured", {}):
        found["image"] = images.compare(packed, original)
    return found


def eight(place: Place, row: Row) -> Row:
    """The same at 8 bits, where errors of rounding are small and errors of structure are not."""
    bits = [*LADDER[row["quantized"]["level"]], "8"]
    done = command.quantize(place.model, place.packed(8), place.text, bits)
    if done["code"]:
        return {"quantize": done}
    found = {"quantize": done, "eval-ppl": command.evaluate(place.model, place.packed(8), place.text)}
    return found | loaded(place, row, bits=8)


Stage = Callable[[Place, Row], Row]
ORIGINAL: dict[str, Stage] = {"built": built, "plain": plain, "pictured": pictured}
PACKED: dict[str, Stage] = {"checked": checked, "loaded": loaded, "eight": eight}
