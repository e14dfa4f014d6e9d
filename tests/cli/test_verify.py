import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nestquant_cli.cli import main
from nestquant_cli.models.source import resolve
from nestquant_cli.pipeline.quantize import quantize
from nestquant_cli.pipeline.recipe import Recipe

SHARD = "model-00002-of-00003.safetensors"


@pytest.fixture
def packed(tmp_path: Path, tiny_model_folder: Path, tiny_text_file: Path) -> Path:
    recipe = Recipe(dataset=str(tiny_text_file), samples=1, seqlen=64)
    quantize(resolve(str(tiny_model_folder)), recipe, tmp_path / "packed", "cpu")
    return tmp_path / "packed"


@pytest.fixture
def verify(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[object, str, str]]:
    def run(*arguments: object) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as leaving:
            main.main(["--quiet", "verify", *map(str, arguments)])
        return leaving.value.code, *capfd.readouterr()

    return run


Run = Callable[..., tuple[object, str, str]]


def test_a_sound_checkpoint_and_then_a_flipped_byte(
    verify: Run, packed: Path, tmp_path: Path, tiny_model_folder: Path
) -> None:
    code, output, error = verify(packed, "--original", tiny_model_folder, "--output", tmp_path / "x.json")
    assert code == 0 and "error: " not in error
    assert "recomputed errors" in output and "9,216 words" in output
    assert json.loads((tmp_path / "x.json").read_text())["ok"] is True

    content = bytearray((packed / SHARD).read_bytes())
    content[-1] ^= 1
    (packed / SHARD).write_bytes(content)
    code, _, error = verify(packed, "--output", tmp_path / "x.json")
    assert (code, error.count("\n")) == (2, 1)
    assert error.startswith("error: ") and SHARD in error and ".words: was altered" in error
    value = json.loads((tmp_path / "x.json").read_text())
    assert value["ok"] is False and len(value["problems"]) == 1

    for shard in packed.glob("*.safetensors"):
        shard.unlink()
    code, output, error = verify(packed)
    assert (code, error.count("\n")) == (2, 1)
    assert "(and 2 more)" in error and output.count("problem: ") == 3


def test_bad_input_is_one_line(verify: Run, tmp_path: Path, tiny_model_folder: Path) -> None:
    for folder, message in ((tmp_path / "none", "does not exist"), (tiny_model_folder, "not a packed checkpoint")):
        code, output, error = verify(folder)
        assert (code, output, error.count("\n")) == (2, "", 1)
        assert error.startswith("error: ") and message in error
