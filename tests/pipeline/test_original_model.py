from pathlib import Path

import pytest

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.models.source import fingerprint, resolve
from nestquant_cli.pipeline.original_model import open_original
from tests.families import pack


def test_an_original_is_a_model_with_its_tokenizer(tiny_model_folder: Path) -> None:
    found = open_original(resolve(str(tiny_model_folder)), "cpu")
    assert found.depth == len(found.weights.decoder.layers) == 2
    assert found.weights.lazy and len(found.tokenizer) > 0
    assert found.sha256 == fingerprint(resolve(str(tiny_model_folder)))


def test_a_packed_checkpoint_is_no_original(tiny_model_folder: Path, tiny_text_file: Path, tmp_path: Path) -> None:
    packed = pack(tiny_model_folder, tiny_text_file, tmp_path / "packed")
    with pytest.raises(NestQuantError, match="is a packed checkpoint already"):
        open_original(resolve(str(packed)), "cpu")
