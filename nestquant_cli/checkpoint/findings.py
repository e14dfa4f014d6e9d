"""The result of `verify`: what was checked and what is wrong."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..base.errors import NestQuantError


@dataclass(frozen=True)
class Problem:
    """One thing wrong: in which file, with which tensor (None: with the file itself), and what."""

    file: str
    tensor: str | None
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}" if self.tensor is None else f"{self.file}: {self.tensor}: {self.what}"


@dataclass
class VerifyReport:
    """What was checked and what is wrong.

    Attributes:
        folder: folder of the checkpoint.
        files, bytes: files and bytes of the manifest that were hashed.
        tensors, matrices, words: numbers of those that were checked.
        recorded: relative error of each matrix by name, as the report records it.
        recomputed: relative error of each matrix against the original weights; empty without an original.
        staying: matrices of the decoder layers that stay in 16 bits, as `Staying.to_dict` gives them.
        unlisted: files in the folder that the manifest does not list and that no loader reads as weights.
        problems: everything wrong, in the order in which it was noticed.
    """

    folder: Path
    files: int = 0
    bytes: int = 0
    tensors: int = 0
    matrices: int = 0
    words: int = 0
    recorded: dict[str, float] = field(default_factory=dict)
    recomputed: dict[str, float] = field(default_factory=dict)
    staying: dict[str, Any] = field(default_factory=dict)
    unlisted: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def add(self, file: str, tensor: str | None, what: str | None) -> bool:
        """Notes a problem unless `what` is None; returns whether all was well."""
        if what is not None:
            self.problems.append(Problem(file, tensor, what))
        return what is None

    def refuse(self) -> None:
        """Raises NestQuantError with the first problem, if there is any."""
        if self.problems:
            more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
            raise NestQuantError(
                f"{self.folder / str(self.problems[0])}{more}",
                "the checkpoint is not what was written",
                "fetch or quantize it again",
            )

    def as_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "ok": not self.problems,
            "files": self.files,
            "bytes": self.bytes,
            "tensors": self.tensors,
            "matrices": self.matrices,
            "words": self.words,
            "recorded_relative_error": self.recorded,
            "recomputed_relative_error": self.recomputed,
            "staying": self.staying,
            "unlisted_files": self.unlisted,
            "problems": [{"file": p.file, "tensor": p.tensor, "what": p.what} for p in self.problems],
        }
