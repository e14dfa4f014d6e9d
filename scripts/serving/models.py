"""One tiny random model from its name to its row: quantized to W4, asked in vLLM, compared with transformers.

Each step is a process that is forked off: a crash costs one step, and vLLM starts no engine where Numba is imported.
"""

import re
import shutil
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from .engine import answers

if TYPE_CHECKING or __package__ == "scripts.serving":
    from scripts.architectures import command, configurations, tiny
    from scripts.architectures.children import in_child, read_notes
    from scripts.architectures.text import LICENSE, save_tokenizer, token_ids
else:  # the folder of a script that is run is on the path
    from architectures import command, configurations, tiny
    from architectures.children import in_child, read_notes
    from architectures.text import LICENSE, save_tokenizer, token_ids

Row = dict[str, Any]
_TABLE = yaml.safe_load((Path(__file__).parent / "models.yaml").read_text(encoding="utf-8"))
CASES: dict[str, dict[str, Any]] = _TABLE["cases"]
SIZES: dict[str, int] = configurations.SIZES | _TABLE["sizes"]
PROMPTS, TOKENS = (50, 9, 2), 16  # lengths of the prompts, and tokens that follow each
LARGEST = 1e-3  # nats, in float32
AS_ORIGINAL = 3  # times the difference of the original in vLLM from that in transformers
SAME, REFUSED, NOT_QUANTIZED, NOT_IN_VLLM, ALSO_DIFFERS, DIFFERS, FAILS = (
    "as transformers",
    "refused",
    "nestquant does not quantize it",
    "vLLM does not run the original",
    "differs, as the original does",
    "differs",
    "fails",
)
BAD = (DIFFERS, FAILS)


def run_case(name: str, work: Path, timeout: float, keep: bool = False) -> Row:
    """The row of a case; `verdict` judges it.

    Args:
        name: of the case.
        work: folder for the files of cases.
        timeout: seconds of a step.
        keep: leave the files.
    """
    folder = work / re.sub(r"[^\w.-]", "_", name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    row: Row = {"name": name, "built": _step(folder / "built", timeout, partial(built, name, folder))}
    if "error" not in row["built"]:
        images = row["built"]["images"]
        row["packed"] = _asked_and_compared(folder / "packed", images, timeout)
        if verdict(row)[0] in BAD:
            row["model"] = _asked_and_compared(folder / "model", images, timeout)
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
    return row


def verdict(row: Row) -> tuple[str, str]:
    """The outcome of a case and what is to be said of it."""
    if "error" in row["built"]:
        return NOT_QUANTIZED, row["built"]["error"]
    packed, original = row["packed"], row.get("model")
    if "refused" in packed:
        return REFUSED, packed["error"]
    if "error" in packed:
        return (NOT_IN_VLLM, original["error"]) if original and "error" in original else (FAILS, packed["error"])
    if packed["largest"] <= LARGEST:
        return SAME, f"{packed['largest']:.0e}"
    if original and packed["largest"] <= AS_ORIGINAL * original.get("largest", 0):
        return ALSO_DIFFERS, f"{packed['largest']:.1e}, the original {original['largest']:.1e}"
    return DIFFERS, f"{packed['largest']:.1e}"


def built(name: str, folder: Path) -> Row:
    """Saves the model in folder/model, and in folder/packed at W4."""
    images = configurations.reads_images(name)
    model = tiny.random_model(configurations.configuration(name, SIZES, CASES.get(name)), images)
    model.save_pretrained(folder / "model")
    save_tokenizer(folder / "model", LICENSE.read_text(encoding="utf-8"))
    text = shutil.copyfile(LICENSE, folder / "text.txt")
    done = command.quantize(folder / "model", folder / "packed", text, ["--weight-bits", "4"])
    found = {"class": type(model).__name__, "images": images}
    return found | {"error": done["error"]} if done["code"] else found


def asked(folder: Path, images: bool) -> Row:
    """What vLLM says of some tokens, in float32 and without compiling."""
    from vllm.model_executor.models import registry

    registry._run_in_subprocess = lambda function: function()  # 20 s for each class, and this is a process of its own
    settings: dict[str, Any] = {"dtype": "float32", "enforce_eager": True}
    if "kv_lora_rank" in (folder / "config.json").read_text(encoding="utf-8"):
        settings["attention_backend"] = "CPU_MLA"  # that for AMX has no float32
    if images:
        settings["limit_mm_per_prompt"] = {"image": 0, "video": 0}
    return {"answers": answers(str(folder), settings, prompts(), TOKENS)}


@torch.inference_mode()
def compared(folder: Path, images: bool, said: list[dict[str, Any]]) -> Row:
    """The largest difference of log-probabilities, those of the greedy tokens included, and of how many."""
    import nestquant_cli  # noqa: F401  (registers the format with transformers)

    model = tiny.open_model(folder, images)  # in float32, as it was saved
    differences = []
    for prompt, answer in zip(prompts(), said, strict=True):
        ids = torch.tensor([prompt + answer["tokens"]])
        scores = model(input_ids=ids).logits[0, :-1].float().log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        differences.append((scores - torch.tensor(answer["prompt"] + answer["chosen"])).abs())
    found = torch.cat(differences)
    return {"largest": float(found.nan_to_num(torch.inf).max()), "places": len(found)}


def prompts() -> list[list[int]]:
    """Token ids of prompts of several lengths, which the engine takes at once."""
    return [token_ids(length, seed=length)[0].tolist() for length in PROMPTS]


def _asked_and_compared(folder: Path, images: bool, timeout: float) -> Row:
    found = _step(folder.with_suffix(".engine"), timeout, partial(asked, folder, images))
    if "error" in found:
        return found
    return _step(folder.with_suffix(".compared"), timeout, partial(compared, folder, images, found["answers"]))


def _step(place: Path, timeout: float, function: Callable[[], Row]) -> Row:
    """What `function` returns in a child, or its error; what the child prints is in a file beside `place`."""
    notes = place.with_suffix(f"{place.suffix}.jsonl")
    died = in_child(lambda note: note("step", _caught(function)), notes, timeout)
    return read_notes(notes).get("step", {"error": died})


def _caught(function: Callable[[], Row]) -> Row:
    """What `function` returns; its error as a line, with "refused" where nestquant said why before vLLM failed."""
    from nestquant_cli.base.errors import NestQuantError

    try:
        return function()
    except Exception as error:
        from nestquant_cli.integrations.vllm.refusals import NotFollowedError

        traceback.print_exc()
        first: BaseException = error
        while not isinstance(first, NestQuantError) and (first.__cause__ or first.__context__):
            first = first.__cause__ or first.__context__ or first
        if isinstance(first, NestQuantError):
            return {"error": str(first)} | ({} if isinstance(first, NotFollowedError) else {"refused": True})
        lines = (str(error).strip() or "no message").splitlines()
        return {"error": f"{type(error).__name__}: {' '.join(lines[:2])[:300]}"}
