"""Output folders where the user names none: in the working folder, after the last part of what they are made from."""

from pathlib import Path


def packed_folder(model: str, tag: str) -> Path:
    """Folder of a packed checkpoint of a model, a name or Hub id, under the tag of its recipe, such as "w4a4kv4"."""
    return Path(f"{_last_part(model)}-nestquant-{tag}")


def calibration_folder(model: str) -> Path:
    """Folder of a stored calibration of a model, a name or Hub id."""
    return Path(f"{_last_part(model)}-calibration")


def comparison_folder(model: str) -> Path:
    """Folder of a comparison of recipes on a model, a name or Hub id."""
    return Path(f"{_last_part(model)}-comparison")


def tuned_folder(checkpoint: Path) -> Path:
    """Folder of a checkpoint that is tuned; "." has the name of the working folder."""
    return Path(f"{checkpoint.absolute().name}-tuned")


def _last_part(model: str) -> str:
    return model.rpartition("/")[2]
