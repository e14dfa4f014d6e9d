"""Fields of a JSON object that may come from anyone: read with their type and range, or refused in one sentence."""

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Fields:
    """Typed access to one JSON object.

    Args:
        value: the parsed JSON.
        place: names the object in errors.

    Raises:
        ValueError: value is no object; every method raises it, too, for a field of another type or out of range.
    """

    def __init__(self, value: Any, place: str) -> None:
        if not isinstance(value, dict):
            raise ValueError(f"{place} is not an object")
        self.value, self.place = value, place

    def integer(self, key: str, low: int, high: int) -> int:
        """The integer of a field; `low` and `high` are within the range."""
        item = self.value.get(key)
        if type(item) is not int or not low <= item <= high:
            raise ValueError(f"{self.place}.{key} must be an integer from {low} to {high}")
        return item

    def mapping(self, key: str) -> dict[str, Any]:
        """The object in a field."""
        item = self.value.get(key)
        if not isinstance(item, dict):
            raise ValueError(f"{self.place}.{key} is not an object")
        return item

    def sequence(self, key: str) -> list[Any]:
        """The list in a field."""
        item = self.value.get(key)
        if not isinstance(item, list):
            raise ValueError(f"{self.place}.{key} is not a list")
        return item

    def optional(self, key: str, read: Callable[[Any], T]) -> T | None:
        """What `read` makes of a field; None where it is null or missing."""
        return None if self.value.get(key) is None else read(self.value[key])
