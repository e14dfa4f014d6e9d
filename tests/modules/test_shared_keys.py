"""Layers that read the keys and values of an earlier layer see them as that layer's cache returns them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nestquant_cli.checkpoint.read import read_layout
from tests.families import MORE_CONFIGS, WINDOW, load, logits, make_model, pack, random_ids, relative_error, save_model


@pytest.mark.parametrize("family", MORE_CONFIGS)
def test_shared_keys_are_rounded_once_and_seen_past_the_window(
    family: str, tiny_tokenizer_folder: Path, tiny_text_file: Path, tmp_path: Path
) -> None:
    folder = save_model(make_model(family), tiny_tokenizer_folder, tmp_path / "model")
    packed = pack(folder, tiny_text_file, tmp_path / "packed")
    assert [codes is None for codes in read_layout(packed).cache] == [False, False, True, True]
    model: Any = load(packed)
    ids, cache, found = random_ids(1, WINDOW + 9), None, list[Tensor]()
    with torch.no_grad():
        for part in ids.split([WINDOW - 2, *[1] * 11], dim=1):
            output = model(input_ids=part, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            found.append(output.logits)
    assert relative_error(torch.cat(found, 1), logits(model, ids)) < 1e-3
