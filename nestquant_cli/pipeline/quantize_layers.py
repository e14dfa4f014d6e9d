"""Quantizes the decoder layers one after the other: statistics of a layer, its matrices, its shard on disk."""

from functools import partial

from ..base.memory import return_blocks
from ..base.progress import track
from ..calibration.statistics import LayerStatistics
from ..checkpoint.output import Output
from ..models.structure import linears
from ..parallel.team import Team
from ..quantization.layer import QuantizedMatrix
from .layer_matrices import quantize_matrices
from .layer_part import LayerPart, part_of
from .output_gradients import OutputGradients
from .sequential_quantizer import SequentialQuantizer
from .statistics_source import StatisticsSource


def quantize_layers(
    source: StatisticsSource,
    output: Output,
    group: Team,
    words: dict[str, int] | None,
    gradients: OutputGradients | None,
) -> list[LayerPart]:
    """Quantizes and writes every layer that a former run has not written.

    Args:
        source: where the statistics of the layers come from, with the model and the recipe.
        output: the checkpoint; rank 0 writes it.
        group: the processes, all of which call this.
        words: bits of a word of each matrix by its full name; None gives all of them the recipe's.
        gradients: of the outputs of Linears, for feedback from row to row; None for none.

    Returns:
        the share of each layer in config.json and the report, in order.
    """
    weights, recipe, depth = source.original.weights, source.recipe, source.original.depth
    written = group.run_on_rank0(lambda: [output.done(index) for index in range(depth)])
    parts = [LayerPart.from_dict(done) if done else None for done in written]
    sequential = callbacks = None
    if recipe.sequential:
        sequential = SequentialQuantizer(source.original, recipe, output, parts, group, words, gradients, source.hidden)
        callbacks = sequential.callbacks
    stream = source.layers([part is not None for part in parts], callbacks)
    for index, measured in enumerate(track(stream, "quantizing layers", total=depth)):
        if measured is None:
            continue
        layer, prefix = weights.decoder.layers[index], weights.decoder.layer_name(index)
        packed, without = dict[str, QuantizedMatrix](), list[LayerStatistics]()
        with weights.layer(index):
            for statistics in measured:
                if sequential is None:
                    packed |= quantize_matrices(linears(layer), statistics, recipe, prefix, group, words, gradients)
                else:
                    packed |= sequential.take()
                without.append(statistics.without_moments())
                del statistics  # before the next part is measured
                return_blocks()
            tensors, part = part_of(prefix, layer, LayerStatistics.join(without), packed, recipe, source.act_shapes)
            group.run_on_rank0(partial(output.write, index, tensors, part.to_dict(), weights.pieces))
        parts[index] = part
        del tensors, packed  # the memory is free again while the next layer is measured
        return_blocks()
    return [part for part in parts if part is not None]
