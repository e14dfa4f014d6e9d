"""How far a comparison has come: one JSON file in its folder, written after every step, by which it is resumed."""

import contextlib
from pathlib import Path

from ..storage.output_checks import refuse_unusable_folder
from ..storage.records import RecordFile
from ..storage.run import Run, refuse_occupied

FILE, LOCK = "progress.json", "progress.lock"
SECTIONS = ("runs", "scores", "tasks")  # seconds and memory of a quantization, sums of windows, metrics of tasks


class ComparisonState(Run):
    """The folder of a comparison, to which every comparison of the same model can add; nothing in it is deleted.

    Its steps are `SECTION/NAME`, with the name of a recipe or of the reference. `with` locks the folder.

    Args:
        folder: output folder: new, empty, or one that a comparison was begun in.

    Raises:
        NestQuantError: the folder holds something else.
    """

    def __init__(self, folder: Path) -> None:
        refuse_unusable_folder(folder)
        refuse_occupied(folder, folder / FILE, LOCK)
        super().__init__(folder, folder / LOCK, RecordFile(folder / FILE, SECTIONS))

    def __exit__(self, *_: object) -> None:
        self.release(remove=True)
        with contextlib.suppress(OSError):  # it holds what was compared, unless the command stopped before that
            self.folder.rmdir()
