import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nestquant_cli.cli import main
from nestquant_cli.models.source import resolve
from nestquant_cli.pipeline.quantize import quantize
from nestquant_cli.pipeline.recipe import Recipe


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path, tiny_text_file: Path) -> Path:
    folder = tmp_path_factory.mktemp("inspect") / "packed"
    quantize(resolve(str(tiny_model_folder)), Recipe(dataset=str(tiny_text_file), samples=1, seqlen=64), folder, "cpu")
    return folder


@pytest.fixture
def inspect(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[object, str, str]]:
    def run(*arguments: object) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as leaving:
            main.main(["inspect", *map(str, arguments)])
        return leaving.value.code, *capfd.readouterr()

    return run


Run = Callable[..., tuple[object, str, str]]


def test_it_prints_parts_layers_recipe_and_the_sum(inspect: Run, packed: Path) -> None:
    code, output, error = inspect(packed)
    assert (code, error) == (0, f"counting the bytes of {packed}\n")
    total = sum(path.stat().st_size for path in packed.iterdir())
    for message in (
        "words",
        "row scales",
        "code parameters",
        "embeddings",
        f"{total:,}",
        "model.layers.1",
        "samples 1",
    ):
        assert message in output
    assert "up_proj" not in output
    *_, counted, following = output.splitlines()
    assert following == f"next: nestquant verify {packed}"
    assert counted.endswith("counting all bytes of the quantized layers (73,728 weights)")


def test_every_matrix_on_demand(inspect: Run, packed: Path) -> None:
    _, output, _ = inspect(packed, "--matrices")
    assert output.count("_proj ") == 14 and "128 × 64" in output


def test_json(inspect: Run, packed: Path, tmp_path: Path) -> None:
    code, _, _ = inspect(packed, "--output", tmp_path / "x.json")
    value = json.loads((tmp_path / "x.json").read_text())
    assert code == 0
    assert {"bits_per_weight", "quantized_weights", "file_bytes", "layers"} <= set(value)
    assert value["quantized_weights"] == 73728


def test_bad_input_is_one_line(inspect: Run, tmp_path: Path, tiny_model_folder: Path) -> None:
    for folder, message in ((tmp_path / "none", "does not exist"), (tiny_model_folder, "not a packed checkpoint")):
        code, output, error = inspect(folder, "--quiet")
        assert (code, output, error.count("\n")) == (2, "", 1)
        assert error.startswith("error: ") and message in error


def test_it_lists_the_kernels_of_a_device_that_need_not_be_there(inspect: Run, packed: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    code, output, _ = inspect(packed, "--kernels", "--device", "cpu", "--output", report)
    assert code == 0 and "Kernels on cpu: cpu" in output and "what is multiplied" in output
    kernels = json.loads(report.read_text())["kernels"]
    assert kernels["operations"]["attend"] == "Numba"
    forms = {(product["resident"], product["tokens"]) for product in kernels["products"]}
    assert forms == {("packed", "any number of tokens"), ("int8", "any number of tokens")}  # W4A4: integers by integers
    assert {product["matrices"] for product in kernels["products"]} == {14}
    code, output, _ = inspect(packed, "--kernels", "--device", "cuda")
    assert code == 0 and "Kernels on cuda" in output
    code, _, error = inspect(packed, "--kernels", "--device", "toaster")
    assert code == 2 and "torch knows no device 'toaster'" in error
