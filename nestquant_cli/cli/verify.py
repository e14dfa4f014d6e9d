"""`nestquant verify`: checks every tensor of a packed checkpoint."""

from .options import CheckpointArgument


def verify_checkpoint(checkpoint: CheckpointArgument) -> None:
    """Check hash, shape, code range and recorded error of every tensor of a packed checkpoint."""
    raise NotImplementedError
