"""`nestquant inspect`: real bits per weight of a packed checkpoint, from its bytes."""

from .options import CheckpointArgument, ReportOption


def inspect_checkpoint(checkpoint: CheckpointArgument, output: ReportOption = None) -> None:
    """Count the bits of a packed checkpoint from the bytes on disk, per part and per layer, and print its recipe."""
    raise NotImplementedError
