"""Compiled loops on the threads that torch itself computes with.

A second set of threads would compete with torch's for the cores: OpenMP's threads spin for a while after each parallel
region, and a thread that sleeps instead is slow to wake. Encoding 2,048 tokens of 576 features on two threads took 8.3
ms with a pool of Python threads, no less than on one thread, and 4.5 ms on torch's. So compiled code hands a loop to
GOMP_parallel of the OpenMP library that torch has loaded, without a Python object or its lock in between. Where there
is none, and in a forked child, which has none of its parent's threads, Python threads do it.
"""

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .e8 import LANES, OPTIONS
from .jit import njit

_LEAST_BLOCKS = 32 * LANES  # a part with fewer blocks costs more to hand to a thread than to do
_PARTS = 4  # parts for each thread, as the machine may not be ours alone
_WORD = ir.IntType(64)
_INT = ir.IntType(32)
_POINTER = ir.IntType(8).as_pointer()
_forked = False


def share(
    on_team: Callable[..., None], fixed: tuple[Any, ...], items: int, blocks_per_item: int = 1, multiple: int = 1
) -> None:
    """Runs a compiled loop over 0 … items, on several threads where there is enough to share.

    Args:
        on_team: the attribute of a loop that `team_loop` compiled, or what takes and does the same.
        fixed: first arguments of the loop; it fills some of them.
        items: how many there are.
        blocks_per_item: how much work one is, in blocks.
        multiple: parts start at multiples of this.
    """
    if items == 0:
        return
    threads = torch.get_num_threads()
    parts = min(_PARTS * threads, items * blocks_per_item // _LEAST_BLOCKS)
    if threads == 1 or parts < 2:
        on_team(fixed, 0, items, items, 1, 0)
        return
    multiple = LANES if blocks_per_item == 1 else multiple
    step = -(-items // (parts * multiple)) * multiple
    if team() and not _forked:
        on_team(fixed, 0, items, step, threads, team())
        return
    starts = range(0, items, step)
    list(_pool(threads).map(lambda start: on_team(fixed, start, min(start + step, items), step, 1, 0), starts))


def team_loop(loop: Callable[..., None]) -> Any:
    """Compiles a loop over the items start … stop, its last two arguments, and the same loop shared among threads.

    The second one is the attribute `on_team`, which `share` takes. It is `_on_team` with the loop as a constant. Numba
    keeps compiled code under the file, line and name of a function, so it gets those of the loop: a closure would be
    compiled again in every process.
    """
    compiled = njit(**OPTIONS)(loop)
    name, code = f"{loop.__name__}_on_team", loop.__code__
    code = _on_team.__code__.replace(co_name=name, co_filename=code.co_filename, co_firstlineno=code.co_firstlineno)
    shared = FunctionType(code, {"__name__": loop.__module__, "spread": spread, "loop": compiled})
    shared.__module__, shared.__qualname__ = loop.__module__, name
    compiled.on_team = njit(**OPTIONS)(shared)
    return compiled


def _on_team(fixed, first, items, step, threads, team):  # type: ignore[no-untyped-def]
    """`team_loop` compiles this one, where `loop` is a name of."""
    spread(loop, fixed, first, items, step, threads, team)  # noqa: F821


@intrinsic
def spread(typingctx, kernel, fixed, first, items, step, threads, team):  # type: ignore[no-untyped-def]
    """Calls kernel(*fixed, start, stop) on steps of first … items; several threads take the next step in turn.

    Args:
        kernel: compiled, without a result. What it raises is lost.
        fixed: tuple of its first arguments.
        first, items, step, threads: int64.
        team: int64, address of GOMP_parallel; 0 is for one thread alone.
    """
    wanted = (*fixed, types.int64, types.int64)
    found = typingctx.resolve_function_type(kernel, wanted, {})
    signature = types.void(kernel, fixed, *[types.int64] * 5)

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        compiled = kernel.dispatcher.overloads[found.args]
        context.active_code_library.add_linking_library(compiled.library)
        _, values, first, items, step, threads, team = arguments
        job = cgutils.alloca_once(builder, ir.LiteralStructType([_WORD, _WORD, _WORD, values.type]))
        for place, value in enumerate((first, items, step, values)):
            builder.store(value, cgutils.gep_inbounds(builder, job, 0, place))
        body = _body(context, builder, job.type, compiled, fixed, found.args)
        data = builder.bitcast(job, _POINTER)
        alone = builder.icmp_signed("==", team, _WORD(0))
        with builder.if_else(alone) as (one, several):
            with one:
                builder.call(body, [data])
            with several:
                of = ir.FunctionType(ir.VoidType(), [body.type, _POINTER, _INT, _INT])
                parallel = builder.inttoptr(team, of.as_pointer())
                builder.call(parallel, [body, data, builder.trunc(threads, _INT), _INT(0)])
        return context.get_dummy_value()

    return signature, codegen


def _body(context, builder, job_type, compiled, fixed, wanted):  # type: ignore[no-untyped-def]
    """The function that every thread runs, void (void *job); a job is the next item, items, step, fixed arguments."""
    of = ir.FunctionType(ir.VoidType(), [_POINTER])
    body = ir.Function(builder.module, of, builder.module.get_unique_name(f"{builder.function.name}.body"))
    body.linkage = "internal"
    inner = ir.IRBuilder(body.append_basic_block("entry"))
    job = inner.bitcast(body.args[0], job_type)
    counter, ends, steps, values = (cgutils.gep_inbounds(inner, job, 0, place) for place in range(4))
    items, step = inner.load(ends), inner.load(steps)
    given = cgutils.unpack_tuple(inner, inner.load(values))
    head, work, done = (body.append_basic_block(name) for name in ("head", "work", "done"))
    inner.branch(head)

    inner.position_at_end(head)
    start = inner.atomic_rmw("add", counter, step, "monotonic")
    inner.cbranch(inner.icmp_signed("<", start, items), work, done)

    inner.position_at_end(work)
    end = inner.add(start, step)
    stop = inner.select(inner.icmp_signed("<", end, items), end, items)
    cast = [context.cast(inner, value, a, b) for value, a, b in zip(given, fixed, wanted, strict=False)]
    function = context.declare_function(builder.module, compiled.fndesc)
    result = compiled.fndesc.restype
    context.call_conv.call_function(inner, function, result, compiled.fndesc.argtypes, [*cast, start, stop])
    inner.branch(head)

    inner.position_at_end(done)
    inner.ret_void()
    return body


@lru_cache(maxsize=1)
def team() -> int:
    """Address of GOMP_parallel in the OpenMP library that torch is linked to, 0 where it has no such function."""
    for path in (Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*"):
        try:
            library = ctypes.CDLL(str(path))  # looks into what it is linked to as well, and in nothing else
            return ctypes.cast(library.GOMP_parallel, ctypes.c_void_p).value or 0
        except (OSError, AttributeError):
            continue
    return 0


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="nestquant")


def _forget_threads() -> None:
    global _forked
    _forked = True
    _pool.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)
