"""Finds the tables of a model that have a row for each token: its embedding and its output head, tied or not."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel

from ..base.errors import NestQuantError
from .linear_kinds import is_plain

_REFUSED = "nothing was quantized"


@dataclass(frozen=True)
class Table:
    """A matrix with a row for each token.

    Attributes:
        name: name of the embedding, or of a head that is by itself.
        tensor: name of the matrix among the model's tensors.
        rows, columns: its size.
        embedding: whether rows are looked up in it.
        head: name of the head that is tied to an embedding; None without one.
    """

    name: str
    tensor: str
    rows: int
    columns: int
    embedding: bool
    head: str | None = None

    @property
    def part(self) -> str:
        """What a recipe calls it: "embedding", also where it is both, or "head"."""
        return "embedding" if self.embedding else "head"


def find_tables(model: PreTrainedModel, embedding: bool, head: bool) -> list[Table]:
    """The embedding, the output head, or the one matrix of both, as `get_input_embeddings` and its like give them.

    Args:
        model: the model; only names and shapes are read.
        embedding, head: which of the two are to be quantized.

    Raises:
        NestQuantError: one is not of the kind that is known, one is tied to more than the other, or only one of two
            that are tied is to be quantized.
    """
    if not embedding and not head:
        return []
    looked_up: nn.Module | None = None
    multiplied: nn.Module | None = None
    with suppress(NotImplementedError):  # transformers does not know where a class has them
        looked_up, multiplied = model.get_input_embeddings(), model.get_output_embeddings()
    names = {id(module): name for name, module in model.named_modules()}
    if embedding and (not isinstance(looked_up, nn.Embedding) or looked_up.max_norm is not None):
        raise _unknown("embedding", looked_up, "nn.Embedding", "--embedding-bits")
    if head and (not isinstance(multiplied, nn.Linear) or not is_plain(multiplied)):
        raise _unknown("output head", multiplied, "nn.Linear", "--head-bits")
    tensors = {f"{names[id(module)]}.weight": module for module in (looked_up, multiplied) if id(module) in names}
    sources = {name: model.all_tied_weights_keys.get(name, name) for name in tensors}
    tied = looked_up is not multiplied and len(tensors) == 2 and len(set(sources.values())) == 1
    if tied and embedding != head:
        raise NestQuantError(
            f"{type(model).__name__} has one matrix for its embedding and its output head",
            _REFUSED,
            "give --embedding-bits and --head-bits the same, or neither",
        )
    of_embedding, of_head = (f"{names.get(id(module), '')}" for module in (looked_up, multiplied))
    _refuse_other_ties(model.all_tied_weights_keys, sources)
    found = []
    if embedding and isinstance(looked_up, nn.Embedding):
        size = looked_up.num_embeddings, looked_up.embedding_dim
        found.append(Table(of_embedding, sources[f"{of_embedding}.weight"], *size, True, of_head if tied else None))
    if head and not tied and isinstance(multiplied, nn.Linear):
        size = multiplied.out_features, multiplied.in_features
        found.append(Table(of_head, sources[f"{of_head}.weight"], *size, False))
    return found


def without_tables(tensors: Mapping[str, Tensor], tables: list[Table]) -> dict[str, Tensor]:
    """Tensors of a model by name, but for those of some tables."""
    names = {name for table in tables for name in (table.tensor, f"{table.name}.weight", f"{table.head}.weight")}
    return {name: tensor for name, tensor in tensors.items() if name not in names}


def _unknown(what: str, module: object, kind: str, option: str) -> NestQuantError:
    found = "there is none" if module is None else f"it is a {type(module).__name__}"
    return NestQuantError(
        f"the model's {what} cannot be quantized: it has to be an {kind} that does as its class does, and {found}",
        _REFUSED,
        f"leave {option} out",
    )


def _refuse_other_ties(ties: Mapping[str, str], sources: Mapping[str, str]) -> None:
    """Raises NestQuantError where other tensors are tied to the tables."""
    for name, source in ties.items():
        if source in sources.values() and name not in sources:
            raise NestQuantError(
                f"{name} is tied to the embedding or the output head, too",
                _REFUSED,
                "leave --embedding-bits and --head-bits out",
            )
