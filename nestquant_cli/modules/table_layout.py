"""What config.json says of a quantized embedding or output head: a matrix with a row for each token."""

from dataclasses import dataclass
from typing import Any

from ..base.fields import Fields
from ..codecs.registry import codec_of, shape_from
from ..codecs.weights import TensorForms, WeightCode
from .inputs import padded_size

LARGEST_TABLE = 1 << 24  # rows or columns; beyond it a config is taken for damaged or hostile


@dataclass(frozen=True)
class TableLayout:
    """One quantized table of the vocabulary: the rows of the embedding, of the head, or of both where they are tied.

    Its columns are rotated as inputs of Linears are, without a learned rotation: a head multiplies with the rotated
    hidden state, and a row that is looked up is rotated back.

    Attributes:
        rows, columns: size of the original matrix.
        code: code of its rows.
        embedding: whether rows are looked up in it; otherwise it is a head alone.
        head: name of the head that multiplies with the matrix of an embedding; None where they are not tied.
    """

    rows: int
    columns: int
    code: WeightCode
    embedding: bool
    head: str | None = None

    def tensors(self) -> TensorForms:
        """The stored tensors, by the name that follows that of the module."""
        return self.code.tensors(self.rows, padded_size(self.columns))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `table_from` is the inverse."""
        codec = codec_of(self.code)
        shape = codec.shape_of(self.code)
        return {
            "rows": self.rows,
            "columns": self.columns,
            "embedding": self.embedding,
            "head": self.head,
            "code": shape.to_dict(),
            "multipliers": None,
            **codec.code_to_dict(self.code, shape),
        }


def table_from(value: Any) -> TableLayout:
    """Reads and checks what `TableLayout.to_dict` wrote.

    Raises:
        ValueError: a field is missing, of the wrong type or out of range.
    """
    fields = Fields(value, "tables")
    rows, columns = fields.integer("rows", 1, LARGEST_TABLE), fields.integer("columns", 1, LARGEST_TABLE)
    embedding, head = fields.value.get("embedding"), fields.value.get("head")
    shape = fields.optional("code", shape_from)
    if type(embedding) is not bool or not (head is None or (embedding and type(head) is str)):
        raise ValueError("tables: embedding must be true or false, and head of an embedding a name or null")
    if shape is None:
        raise ValueError("tables: code is missing")
    forms = shape.tensors(rows, padded_size(columns))
    if set(forms) != {"words", "row_scale"} or forms["row_scale"][0] != (rows,):
        raise ValueError("tables: code has no single scale a row")
    return TableLayout(rows, columns, codec_of(shape).code_from(fields, shape, padded_size(columns)), embedding, head)
