"""Ends ties between decoder layers: a matrix that several layers share is coded in each place by itself.

What a shared block is given differs from place to place, and so do the codes of its inputs and its rounding.
"""

from transformers import PreTrainedModel

from ..models.structure import Decoder


def untie_layers(model: PreTrainedModel, decoder: Decoder) -> None:
    """Makes transformers forget that tensors of one decoder layer are those of another; checkpoints have all of them.

    Args:
        model: the model, before or after its Linears are exchanged.
        decoder: its decoder layers.
    """
    inside = decoder.prefix + "."
    for name in [name for name in model.all_tied_weights_keys if name.startswith(inside)]:
        del model.all_tied_weights_keys[name]
    for path, module in model.named_modules():
        ties = getattr(module, "_tied_weights_keys", None)
        if isinstance(module, PreTrainedModel) and isinstance(ties, dict):
            prefix = f"{path}." if path else ""
            kept = {name: source for name, source in ties.items() if not f"{prefix}{name}".startswith(inside)}
            if len(kept) < len(ties):
                module._tied_weights_keys = kept


def untie(model: PreTrainedModel, *names: str) -> None:
    """Makes transformers forget the ties from and to some tensors, by full names, which the model no longer has."""
    for name in [name for name, source in model.all_tied_weights_keys.items() if {name, source} & set(names)]:
        del model.all_tied_weights_keys[name]
    for path, module in model.named_modules():
        ties = getattr(module, "_tied_weights_keys", None)
        if isinstance(module, PreTrainedModel) and isinstance(ties, dict):
            prefix = f"{path}." if path else ""
            kept = {
                name: source
                for name, source in ties.items()
                if not {f"{prefix}{name}", f"{prefix}{source}"} & set(names)
            }
            if len(kept) < len(ties):
                module._tied_weights_keys = kept
