"""Writes a tuned checkpoint: the untuned one with some tensors replaced, and its records brought in line."""

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..checkpoint.manifest import CONFIG, INDEX, REPORT, read_manifest
from ..checkpoint.original import relative_change, relative_error
from ..checkpoint.output import Output
from ..checkpoint.read import read_layout
from ..models.shards import read_tensors
from ..models.structure import open_decoder
from ..modules.inputs import padded_size
from ..modules.layout import REFLECTORS, Layout
from ..rotation.reflections import rotation_for
from ..rotation.seeds import dual
from ..storage.files import read_json


def shards_of(manifest: dict[str, Any]) -> list[str]:
    """Names of a checkpoint's shards, in order."""
    return sorted(name for name in manifest["files"] if name.endswith(".safetensors"))


def write_tuned(
    output: Output,
    checkpoint: Path,
    tuned: dict[str, Tensor],
    original: PreTrainedModel,
    settings: dict[str, Any],
    record: dict[str, Any],
) -> dict[str, Any]:
    """Completes a tuned checkpoint and returns its report.

    Args:
        output: new output, with as many parts as the checkpoint has shards.
        checkpoint: folder of the untuned checkpoint.
        tuned: tensors that changed, by name; all others are copied.
        original: the model that the checkpoint was made from; its matrices are made Linears.
        settings: settings of the tuning, for config.json and the report.
        record: losses of the tuning, for the report.
    """
    manifest, layout = read_manifest(checkpoint), read_layout(checkpoint)
    report: dict[str, Any] = read_json(checkpoint / REPORT)
    open_decoder(original)  # so that its matrices have the names of the packed ones
    originals = original.state_dict()
    changes: dict[str, float] = {}
    shards = shards_of(manifest)
    for number, file in enumerate(shards):
        tensors = read_tensors(checkpoint / file)
        for name in sorted(tuned.keys() & tensors.keys()):
            tensors[name] = tuned[name].to(tensors[name].dtype)
            matrix, _, leaf = name.rpartition(".")
            if leaf == "row_scale":
                error = _error(layout, matrix, originals[f"{matrix}.weight"], tensors)
                report["matrices"][matrix]["relative_error"] = error
            else:
                changes[name] = relative_change(originals[name], tensors[name])
        output.write(number, tensors, {})

    others = sorted({*manifest["files"]} - {*shards, INDEX, REPORT, CONFIG})
    output.add_files(lambda staging: [shutil.copyfile(checkpoint / name, staging / name) for name in others])
    config: dict[str, Any] = read_json(checkpoint / CONFIG)
    config["quantization_config"]["recipe"]["tune"] = report["recipe"]["tune"] = settings
    report |= {"tuning": record, "tuned": changes}
    output.finish(config, report)
    return report


def _error(layout: Layout, matrix: str, weight: Tensor, tensors: dict[str, Tensor]) -> float:
    """Relative error of a packed matrix with its tuned row scales."""
    linear = layout.linears[matrix]
    code, parts = linear.code, layout.parts.get(linear.input, 1)
    assert code is not None
    packed = {leaf: tensors[f"{matrix}.{leaf}"] for leaf in linear.tensors()}
    bits = tensors.get(f"{linear.input}.{REFLECTORS}")
    reflectors = None if bits is None else bits.view(torch.bfloat16)
    rotation = rotation_for(padded_size(weight.shape[1]), dual(layout.seed_of(linear.input)), reflectors, parts)
    return relative_error(weight.cpu(), packed, code, rotation)
