"""The matrices of one decoder layer, divided over the processes of a team.

Matrices that share an input are rounded by the same process, since they share one factorization and one code. So every
matrix is rounded just as a single process would do it.
"""

import dataclasses
from collections.abc import Mapping

from torch import nn

from ..calibration.statistics import InputStatistics, LayerStatistics
from ..codecs.registry import codec_of
from ..codecs.weights import Shape
from ..e8.code import BLOCK
from ..parallel.team import Team
from ..parallel.tiles import run_tasks
from ..quantization.layer import QuantizedMatrix, quantize_group
from .output_gradients import OutputGradients
from .recipe import Recipe


def quantize_matrices(
    linears: dict[str, nn.Linear],
    statistics: LayerStatistics,
    recipe: Recipe,
    place: str,
    team: Team,
    words: Mapping[str, int] | None = None,
    gradients: OutputGradients | None = None,
) -> dict[str, QuantizedMatrix]:
    """Quantizes the Linears of a layer, this process its share, and gathers the results on all processes.

    Args:
        linears: the layer's Linears by name.
        statistics: statistics of their inputs.
        recipe: settings of the quantization.
        place: name of the layer, for errors.
        team: the processes that share the work.
        words: bits of a word of each matrix by its full name; None gives all of them the recipe's bits.
        gradients: of the outputs, for feedback from row to row; None for none.

    Returns:
        by name, tensors on the CPU, in an order that does not depend on the team; empty where weights stay in 16 bits.

    Raises:
        NestQuantError: of whichever process failed, on all of them.
    """
    shape = recipe.shape("weight")
    if shape is None:
        return {}
    costs = {leader: _cost(linears, item) for leader, item in statistics.inputs.items()}
    owners = divide(costs, team.size)

    def quantize_mine() -> dict[str, QuantizedMatrix]:
        packed: dict[str, QuantizedMatrix] = {}
        mine = [leader for leader in sorted(costs, key=lambda name: -costs[name]) if owners[leader] == team.rank]

        def quantize(leader: str) -> None:
            item = statistics.inputs[leader]
            for group_shape, members in _by_shape(item.members, place, shape, words).items():
                group = quantize_group(
                    linears,
                    dataclasses.replace(item, members=members),
                    group_shape,
                    recipe.seed,
                    recipe.damping,
                    place,
                    rotated=recipe.rotation != "none",
                    feeding=recipe.feedback == "ldlq",
                    aware=recipe.qa,
                    paths=recipe.search_paths,
                    metrics=() if gradients is None else gradients.metrics(_rows(linears, members, place)),
                )
                packed.update(group)

        run_tasks(quantize, mine, lambda leader: _bytes(linears, statistics.inputs[leader]))
        return {name: _on_cpu(matrix) for name, matrix in packed.items()}

    gathered = {name: matrix for part in team.run_on_all(quantize_mine) for name, matrix in part.items()}
    return {name: gathered[name] for item in statistics.inputs.values() for name in item.members}


def _rows(linears: dict[str, nn.Linear], members: tuple[str, ...], place: str) -> dict[str, int]:
    return {f"{place}.{name}": linears[name].out_features for name in members}


def _by_shape(
    members: tuple[str, ...], place: str, shape: Shape, words: Mapping[str, int] | None
) -> dict[Shape, tuple[str, ...]]:
    """Members of one input by the shape of their code: those with the same one are rounded together."""
    if words is None:
        return {shape: members}
    codec, bits = codec_of(shape), {name: words[f"{place}.{name}"] / BLOCK for name in members}
    shapes: dict[str, Shape] = {name: codec.shape(bits[name], None, name) for name in members}
    return {one: tuple(name for name in members if shapes[name] == one) for one in dict.fromkeys(shapes.values())}


def divide(costs: Mapping[str, float], size: int) -> dict[str, int]:
    """Assigns tasks to `size` processes: the costliest first, each to the process with the least cost so far.

    Returns:
        rank by the name of the task.
    """
    loads = [0.0] * size
    owners = {}
    for name in sorted(costs, key=lambda name: -costs[name]):
        owner = loads.index(min(loads))
        owners[name] = owner
        loads[owner] += costs[name]
    return owners


def _cost(linears: dict[str, nn.Linear], item: InputStatistics) -> float:
    """Cost of rounding the matrices of one input, n²·(n + rows): the factorization and the feedback, up to a factor."""
    n = item.hessian.shape[0]
    rows = sum(linears[name].out_features for name in item.members)
    return float(n) ** 2 * (n + rows)


def _bytes(linears: dict[str, nn.Linear], item: InputStatistics) -> int:
    """Bytes that rounding the matrices of one input takes, about: 20 for each entry of H, as `plan_memory.FACTORS`
    counts, and five float32 matrices as large as the weights."""
    n = item.hessian.shape[0]
    return 20 * n * n + 20 * n * sum(linears[name].out_features for name in item.members)


def _on_cpu(matrix: QuantizedMatrix) -> QuantizedMatrix:
    return dataclasses.replace(matrix, tensors={name: tensor.cpu() for name, tensor in matrix.tensors.items()})
