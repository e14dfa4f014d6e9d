"""The one error type that reaches a user: one line with cause, consequence and remedy."""

from .printable import escaped

LONGEST = 200  # characters of a line that another library says


class NestQuantError(Exception):
    """Bad input or an unusable state, as one line "cause; consequence; remedy".

    Args:
        cause: what is wrong, with the name of the file, option or tensor.
        consequence: what is not done because of it.
        remedy: what the user can do next.

    Example:
        >>> raise NestQuantError("bits 4.3 is not a multiple of 1/8", "nothing was quantized", "use 4.25 or 4.375")
    """

    raised_by_all = False  # whether all processes of a run raise it, so that one of them is enough to print it

    def __init__(self, cause: str, consequence: str, remedy: str) -> None:
        self.cause, self.consequence, self.remedy = map(_one_line, (cause, consequence, remedy))
        super().__init__(f"{self.cause}; {self.consequence}; {self.remedy}")

    def __reduce__(self) -> tuple[type["NestQuantError"], tuple[str, str, str]]:
        return NestQuantError, (self.cause, self.consequence, self.remedy)


def _one_line(text: str) -> str:
    """The text without line breaks and control characters: it may contain names from files that others wrote."""
    return escaped("".join(" " if character in "\r\n\t" else character for character in text))


def first_line(error: BaseException) -> str:
    """The first line of an error's text, at most 200 characters, without the mark at its end."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".: ")
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"
