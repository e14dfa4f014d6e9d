"""What a process of the command line needs before anything large is imported: exit codes and standard streams.

Only the standard library is imported here.
"""

import os
import sys

# exit codes; every failure is 2, because Python's own 1 for a crash would read as a failed quality gate
DONE, GATE_FAILED, BAD_INPUT = 0, 1, 2
INTERRUPTED = 130  # what a shell gives a process that SIGINT ended
INTERRUPTION = "interrupted; the command stopped before its end; run it again"
_STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))  # in order of their descriptors 0, 1, 2


def repair_streams() -> None:
    """Gives a process that was started with closed standard streams ones that lead to the null device.

    Otherwise the next file that is opened gets the descriptor of a closed stream, and whoever prints writes into it.
    """
    for descriptor, (name, mode) in enumerate(_STREAMS):
        if getattr(sys, name) is not None:
            continue
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != descriptor:
                os.dup2(null, descriptor)
                os.close(null)
        setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - it lasts as long as the process
