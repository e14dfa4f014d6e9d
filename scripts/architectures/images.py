"""Generated images as inputs of a tiny model: their form follows from the arguments of its forward."""

import inspect
from typing import Any

import torch
from torch import Tensor

from . import measures
from .text import token_ids

SIDE = 4  # patches along an edge, where patches are given one by one
BEFORE, AFTER, STEPS = 6, 10, 6  # tokens of text around an image, and those that answer


def inputs(model: Any, seed: int) -> dict[str, Tensor]:
    """Token ids (1, n) with places for a random image, and the image as the model takes it."""
    image = pixels(model, seed)
    places = torch.tensor([_marked(model.config, [image_token(model.config)] * _tokens(model, image))])
    text = token_ids(BEFORE + AFTER, seed=7)
    ids = torch.cat([text[:, :BEFORE], places, text[:, BEFORE:]], 1)
    kinds: dict[str, Tensor] = {
        name: _kinds(model, ids) for name in ("mm_token_type_ids", "token_type_ids") if name in _takes(model)
    }
    return {"input_ids": ids} | image | kinds


def pixels(model: Any, seed: int) -> dict[str, Tensor]:
    """A random image as arguments of the forward."""
    takes, vision = _takes(model), model.config.vision_config
    # A size of patches that the model merges is not what it is given.
    merged = getattr(vision, "model_patch_size", vision.patch_size)
    patch, side, channels = _edge(merged), _edge(getattr(vision, "image_size", 28)), 3
    square, count = channels * patch * patch, SIDE * SIDE

    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))

    if "image_grid_thw" in takes:
        grid, temporal = torch.tensor([[1, SIDE, SIDE]]), getattr(vision, "temporal_patch_size", None)
        shape = (channels, patch, patch) if temporal is None else (square * temporal,)  # of a patch
        return {"pixel_values": random(count, *shape), "image_grid_thw": grid}
    if "image_position_ids" in takes:
        edge = 2 * vision.pooling_kernel_size
        places = torch.cartesian_prod(torch.arange(edge), torch.arange(edge)).flip(1)[None]
        return {"pixel_values": random(1, edge * edge, square), "image_position_ids": places}
    if "spatial_shapes" in takes:
        shapes, mask = torch.tensor([[SIDE, SIDE]]), torch.ones(1, count, dtype=torch.int64)
        return {"pixel_values": random(1, count, square), "spatial_shapes": shapes, "pixel_attention_mask": mask}
    if "aspect_ratio_ids" in takes:
        tiles, first = vision.max_num_tiles, torch.ones(1, 1, dtype=torch.int64)
        mask = torch.zeros(1, 1, tiles, dtype=torch.int64)
        mask[..., 0] = 1
        image = random(1, 1, tiles, channels, side, side)
        return {"pixel_values": image, "aspect_ratio_ids": first, "aspect_ratio_mask": mask}
    if "pixel_attention_mask" in takes:
        return {"pixel_values": random(1, 1, channels, side, side)}
    if getattr(model.config, "image_grid_pinpoints", None):
        height, width = model.config.image_grid_pinpoints[0]
        tiles = 1 + (height // side) * (width // side)
        return {"pixel_values": random(1, tiles, channels, side, side), "image_sizes": torch.tensor([[height, width]])}
    sizes = {"image_sizes": torch.tensor([[side, side]])} if "image_sizes" in _feature_takes(model) else {}
    return {"pixel_values": random(1, channels, side, side), **sizes}


def steps_against_forward(model: Any) -> float:
    """KL divergence of the steps of generate, with an image in the prompt, from one forward over the same tokens."""
    given = inputs(model, 0)
    start = given["input_ids"].shape[1]
    sequences, steps = measures.generate(model, given.pop("input_ids"), STEPS, **given)
    whole = measures.logits(model, sequences, attention_mask=torch.ones_like(sequences), **_longer(given, start))
    return measures.divergence(whole[:, start - 1 : -1], steps)


def compare(packed: Any, original: Any) -> dict[str, float]:
    """For an image and text, KL divergence of the packed model from the original, and of its steps from a forward."""
    given = inputs(original, 0)
    ours, theirs = (measures.logits(model, **given) for model in (packed, original))
    return {"forward": measures.divergence(theirs, ours), "steps": steps_against_forward(packed)}


def image_token(config: Any) -> int:
    """The token id that stands for a part of an image."""
    for name in ("image_token_id", "image_token_index"):
        if getattr(config, name, None) is not None:
            return int(getattr(config, name))
    raise LookupError("no token id stands for an image")


def _marked(config: Any, places: list[int]) -> list[int]:
    """The places of an image between the tokens that begin and end one, where the model has such."""
    ends = (getattr(config, f"vision_{end}_token_id", None) for end in ("start", "end"))
    start, end = ([] if token is None else [token] for token in ends)
    return [*start, *places, *end]


def _longer(given: dict[str, Tensor], start: int) -> dict[str, Tensor]:
    """The kinds of tokens of a prompt, with those of the answer, which is text."""
    long = {}
    for name, value in given.items():
        if name.endswith("token_type_ids"):
            value = torch.nn.functional.pad(value, (0, STEPS))
        long[name] = value
    return long


def _tokens(model: Any, image: dict[str, Tensor]) -> int:
    """How many tokens the image takes: as many as the model makes features of it; one where it attends to images."""
    if not hasattr(model, "get_image_features"):
        return 1
    with torch.no_grad():
        found = model.get_image_features(**image)
    pooled, states = getattr(found, "pooler_output", None), getattr(found, "last_hidden_state", found)
    features = states if pooled is None else pooled
    width = model.config.get_text_config().hidden_size
    parts = features if isinstance(features, list | tuple) else [features]
    return sum(part.numel() for part in parts) // width


def _kinds(model: Any, ids: Tensor) -> Tensor:
    return (ids == image_token(model.config)).long()


def _edge(size: Any) -> int:
    return int(size[0] if isinstance(size, list | tuple) else size)


def _takes(model: Any) -> set[str]:
    return set(inspect.signature(model.forward).parameters)


def _feature_takes(model: Any) -> set[str]:
    return set(inspect.signature(model.get_image_features).parameters)
