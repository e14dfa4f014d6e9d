"""Collects the results of checks: a line for each, and the exit code."""

from collections.abc import Callable

PASSED, FAILED, BAD_USE, SKIPPED = 0, 1, 2, 77

Outcome = tuple[bool, str]  # whether it holds, and figures


class Checks:
    """Prints a line for each check as soon as it is done.

    Attributes:
        failed: names of those that failed.
        done: how many there were.
    """

    def __init__(self) -> None:
        self.failed: list[str] = []
        self.done = 0

    def add(self, what: str, outcome: Outcome) -> None:
        """Notes a result."""
        passed, figures = outcome
        self.done += 1
        if not passed:
            self.failed.append(what)
        print(f"{'ok' if passed else 'FAILED'}: {what}" + (f" ({figures})" if figures else ""), flush=True)

    def run(self, what: str, check: Callable[[], Outcome]) -> None:
        """Runs a check; an exception is a failure of this check alone."""
        try:
            outcome = check()
        except Exception as error:
            outcome = False, " ".join(f"{type(error).__name__}: {error}".split())[:400]
        self.add(what, outcome)

    def finish(self) -> int:
        """Prints the last line; returns the exit code."""
        verdict = f"failed: {', '.join(self.failed)}" if self.failed else "all passed"
        print(f"{self.done} checks, {verdict}", flush=True)
        return FAILED if self.failed else PASSED
