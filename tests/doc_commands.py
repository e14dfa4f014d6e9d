"""The commands in the code blocks of the documentation, and how each is run on a tiny model of one's own."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GENERATED = "commands.md"  # written from the program itself
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if page.name != GENERATED),
]

# Options that stand behind those of the page, where the last one counts: everything small, and no download.
SMALLER = {
    "calibrate": "--dataset TEXT --samples 2 --seqlen 64",
    "quantize": "--dataset TEXT --samples 2 --seqlen 64 --output NEW",
    "tune": "--dataset TEXT --steps 2 --checks 1 --held-out 1 --seqlen 32 --output NEW",
    "eval-ppl": "--dataset TEXT --seqlen 64 --max-windows 2",
    "compare": "--dataset TEXT --eval-dataset TEXT --samples 2 --seqlen 64 --max-windows 1 --output NEW",
    "generate": "--max-new-tokens 4",
    "chat": "--max-new-tokens 4",
    "report": "--dataset TEXT --seqlen 64 --max-windows 1 --max-new-tokens 4 --output NEW",
    "export": "--output NEW",
    "inspect": "",
    "verify": "",
    "push": "--base-model org/model --license mit",
}
OURS = re.compile(r"(\$CHECKPOINT|CKPT|DIR|w4|w4a4kv4|demo-w4a4kv4|[\w.-]+-nestquant-[\w.-]+)")
MODELS = re.compile(r"(demo|MODEL|ID|(meta-llama|you|org)/[\w.-]+)")


@dataclass(frozen=True)
class Command:
    """One command of a page.

    Attributes:
        text: as it is written there.
        words: what follows the program's name.
        direct: whether it is `nestquant …` itself, not a launcher's argument.
    """

    text: str
    words: tuple[str, ...]
    direct: bool

    @property
    def offline(self) -> bool:
        """Whether it can be run on a tiny model, without a network and without another program."""
        uploads = self.words[0] == "push" and "--dry-run" not in self.words
        return self.direct and self.words[0] in SMALLER and not uploads


def commands(page: Path) -> list[Command]:
    """All of a page: indented lines and fenced blocks, with their continuations, without comments."""
    text = re.sub(r" *\\\n\s*", " ", page.read_text(encoding="utf-8"))
    found = []
    for line in re.findall(r"^(?:    |- )+(.*(?:nestquant|nestquant_cli) .*)$", text, re.M):
        start = re.match(r"(?P<own>(?:.*\| )?nestquant )|torchrun .*-m nestquant_cli ", line)
        if start is None:
            continue
        words = tuple(shlex.split(line[start.end() :], comments=True))
        found.append(Command(line.strip(), words, start["own"] is not None))
    return found


def smaller(command: Command, places: dict[str, str]) -> list[str]:
    """The words of a command on a tiny model.

    Args:
        places: what MODEL, CKPT, TEXT, NEW (a path that does not exist), OUT (a folder) and TUNING (a settings file)
            stand for.
    """
    name, *rest = command.words
    rest = [",".join(_few(word.split(","), rest)) if before == "--recipes" else word for before, word in pairs(rest)]
    words = [name, *(_local(before, word, places) for before, word in pairs(rest))]
    if name == "push":
        words[2] = rest[1]  # where to: an id on the Hub, not a model here
    extra = SMALLER[name].split() + (["--config", "TUNING"] if "--tune" in rest else [])
    return words + [places.get(word, word) for word in extra]


def pairs(words: Sequence[str]) -> list[tuple[str, str]]:
    """Each word behind the one before it."""
    return list(zip(["", *words], words, strict=False))


def _few(recipes: list[str], words: Sequence[str]) -> list[str]:
    """Two of the recipes, and the one that they are compared with."""
    against = [word for before, word in pairs(words) if before == "--against"]
    return [each for each in recipes if Path(each).stem in against or each in recipes[-2:]]


def _local(before: str, word: str, places: dict[str, str]) -> str:
    if before == "--recipes":
        names = [Path(each).name for each in word.split(",")]
        return ",".join(str(ROOT / "configs" / name) for name in names)
    if word.startswith("configs/"):
        return str(ROOT / word)
    if word.endswith((".json", ".xml")):
        return f"{places['OUT']}/{word}"
    if before == "--fail-above":
        return "1e9"  # the tiny model is a bad one
    if OURS.fullmatch(word):
        return places["CKPT"]
    return places["MODEL"] if MODELS.fullmatch(word) and before != "--base-model" else word
