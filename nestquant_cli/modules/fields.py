"""Fields of a config.json that may come from anyone: read with their type and range, or refused in one sentence."""

from collections.abc import Callable
from typing import Any, TypeVar

from ..base.errors import NestQuantError

T = TypeVar("T")


class Fields:
    """Typed access to one JSON object; `place` names it in errors."""

    def __init__(self, value: Any, place: str) -> None:
        if not isinstance(value, dict):
            raise unusable(f"{place} is not an object")
        self.value, self.place = value, place

    def integer(self, key: str, low: int, high: int) -> int:
        """The integer of a field; `low` and `high` are within the range."""
        item = self.value.get(key)
        if type(item) is not int or not low <= item <= high:
            raise unusable(f"{self.place}.{key} must be an integer from {low} to {high}")
        return item

    def mapping(self, key: str) -> dict[str, Any]:
        """The object in a field."""
        item = self.value.get(key)
        if not isinstance(item, dict):
            raise unusable(f"{self.place}.{key} is not an object")
        return item

    def sequence(self, key: str) -> list[Any]:
        """The list in a field."""
        item = self.value.get(key)
        if not isinstance(item, list):
            raise unusable(f"{self.place}.{key} is not a list")
        return item

    def optional(self, key: str, read: Callable[[Any], T]) -> T | None:
        """What `read` makes of a field; None where it is null or missing."""
        return None if self.value.get(key) is None else read(self.value[key])


def checked(make: Callable[[], T]) -> T:
    """What `make` returns; its ValueError is what is wrong with config.json."""
    try:
        return make()
    except ValueError as error:
        raise unusable(str(error)) from error


def unusable(cause: str) -> NestQuantError:
    """The error that says `cause` of config.json."""
    return NestQuantError(
        f"config.json is not usable: {cause}", "the checkpoint was not loaded", "fetch or quantize the checkpoint again"
    )
