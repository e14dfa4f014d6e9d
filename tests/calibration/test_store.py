import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.calibration.statistics import InputStatistics, LayerStatistics
from nestquant_cli.calibration.store import FILE, Calibration, remove_calibration, to_device
from nestquant_cli.calibration.store_writer import CalibrationWriter
from nestquant_cli.codecs.nested.code import ScaledCode
from nestquant_cli.e8.shape import shape_for_bits
from nestquant_cli.modules.cache_codes import CacheCodes
from nestquant_cli.parallel.team import Team
from tests.families import gaussian

FOUR = shape_for_bits(4)
CODE = ScaledCode(FOUR.with_multipliers((3, 4, 5, 6, 9)), 0.034)
ABOUT: dict[str, Any] = {"model_sha256": "a" * 64, "seed": 0, "act_code": [13, 5], "kv_code": [13, 5], "dataset": "t"}


def layer(seed: int) -> LayerStatistics:
    x = gaussian(40, 16, seed=seed)
    inputs = {
        "a.q": InputStatistics(("a.q", "a.k"), x.t() @ x / 40, gaussian(16, seed=seed).square(), CODE),
        "b": InputStatistics(("b",), torch.eye(24), torch.full((24,), 0.01), CODE, dead=3),
    }
    return LayerStatistics(inputs, CacheCodes(CODE, ScaledCode(FOUR.with_multipliers((2, 4)), 0.02)))


def put(writer: CalibrationWriter, number: int) -> None:
    writer.write(number, [layer(number)], ["a.q", "a.k", "b"], Team())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    writer = CalibrationWriter(tmp_path / "c", ABOUT)
    for seed in range(2):
        put(writer, seed)
    writer.finish(2)
    return tmp_path / "c"


def edited(folder: Path, **changes: Any) -> Calibration:
    value = json.loads((folder / FILE).read_text())
    (folder / FILE).write_text(json.dumps(value | changes))
    return Calibration(folder)


def test_what_is_saved_is_loaded(folder: Path) -> None:
    stored = Calibration(folder)
    stored.check(ABOUT)
    for seed in range(2):
        expected, found = (
            layer(seed),
            to_device(LayerStatistics.join(stored.layer(seed, FOUR, FOUR)), torch.device("cpu")),
        )
        assert found.cache == expected.cache
        assert list(found.inputs) == sorted(expected.inputs)
        for name, item in expected.inputs.items():
            for field in ("members", "code", "dead"):
                assert getattr(found.inputs[name], field) == getattr(item, field)
            assert torch.equal(found.inputs[name].hessian, item.hessian)
            assert torch.equal(found.inputs[name].noise, item.noise)


def test_sixteen_bits_drop_noise_and_codes(folder: Path) -> None:
    found = LayerStatistics.join(Calibration(folder).layer(0, None, None))
    assert found.cache is None
    assert all(item.code is None and not item.noise.any() for item in found.inputs.values())
    Calibration(folder).check(ABOUT | {"act_code": None, "kv_code": None, "centering": True})
    with pytest.raises(NestQuantError, match="was calibrated with centering"):
        Calibration(folder).check(ABOUT | {"kv_code": None, "centering": True})


@pytest.mark.parametrize(
    "wanted", [{"model_sha256": "b" * 64}, {"seed": 1}, {"act_code": [14, 4]}, {"kv_code": [9, 6]}, {"dataset": "u"}]
)
def test_other_settings_are_refused_by_name(folder: Path, wanted: dict[str, Any]) -> None:
    with pytest.raises(NestQuantError, match=f"was calibrated with {next(iter(wanted))} .*, not "):
        Calibration(folder).check(ABOUT | wanted)


def test_folders_that_are_no_calibration_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NestQuantError, match="is not a finished calibration"):
        Calibration(tmp_path)
    (tmp_path / FILE).write_text("[")
    with pytest.raises(NestQuantError, match="not valid JSON"):
        Calibration(tmp_path)
    for content in ("[]", '{"format_version": 99}'):
        (tmp_path / FILE).write_text(content)
        with pytest.raises(NestQuantError, match="unknown version"):
            Calibration(tmp_path)
    (tmp_path / FILE).write_text('{"format_version": 1}')
    with pytest.raises(NestQuantError, match="damaged"):
        Calibration(tmp_path)


def test_truncated_altered_and_missing_layers_are_refused(folder: Path) -> None:
    stored, file = Calibration(folder), folder / "layer-00001.safetensors"
    content = file.read_bytes()
    for changed in (content[:-1], content[:-1] + bytes([content[-1] ^ 1])):
        file.write_bytes(changed)
        with pytest.raises(NestQuantError, match=r"layer-00001\.safetensors was altered or truncated"):
            list(stored.layer(1, FOUR, FOUR))
    file.unlink()
    with pytest.raises(NestQuantError, match="damaged"):
        list(stored.layer(1, FOUR, FOUR))
    with pytest.raises(NestQuantError, match="damaged"):
        list(stored.layer(2, FOUR, FOUR))


@pytest.mark.parametrize("key", ["sha256", "inputs", "cache"])
@pytest.mark.parametrize("value", [None, 3, [], {"x": {}}, {"a.q": {"members": ["a"], "code": {"unit": "x"}}}])
def test_a_damaged_description_is_refused(folder: Path, key: str, value: object) -> None:
    if (key, value) == ("cache", None):
        return  # of a layer that keeps no keys and values
    layers = json.loads((folder / FILE).read_text())["layers"]
    layers[0][key] = value
    with pytest.raises(NestQuantError, match=r"damaged|altered"):
        list(edited(folder, layers=layers).layer(0, FOUR, FOUR))


def test_only_an_empty_or_unfinished_folder_is_written_to(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(NestQuantError, match="is not empty"):
        CalibrationWriter(folder, ABOUT)
    with pytest.raises(NestQuantError, match="is a file"):
        CalibrationWriter(folder / FILE, ABOUT)


def test_an_unfinished_calibration_goes_on_and_is_none(folder: Path, tmp_path: Path) -> None:
    first = CalibrationWriter(tmp_path / "d", ABOUT)
    put(first, 0)
    first.state.release()
    with pytest.raises(NestQuantError, match="is not a finished calibration"):
        Calibration(tmp_path / "d")
    with pytest.raises(NestQuantError, match="unfinished run with seed 0 instead of 1"):
        CalibrationWriter(tmp_path / "d", ABOUT | {"seed": 1})
    again = CalibrationWriter(tmp_path / "d", ABOUT)
    assert again.done(0) and not again.done(1)
    put(again, 1)
    again.finish(2)
    for name in (FILE, "layer-00000.safetensors", "layer-00001.safetensors"):
        assert (tmp_path / "d" / name).read_bytes() == (folder / name).read_bytes()
    assert len(list((tmp_path / "d").iterdir())) == 3


def test_what_is_beside_a_calibration_stays_when_it_is_removed(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    (folder / "layer-99999.safetensors").write_text("mine too")
    remove_calibration(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["layer-99999.safetensors", "notes.txt"]
    for path in list(folder.iterdir()):
        path.unlink()
    folder.rmdir()


def test_a_calibration_alone_is_removed_with_its_folder(folder: Path) -> None:
    remove_calibration(folder)
    assert not folder.exists()


def test_a_layer_that_was_altered_is_measured_again(tmp_path: Path) -> None:
    with CalibrationWriter(tmp_path / "d", ABOUT) as writer:
        put(writer, 0)
        assert writer.done(0)
        path = tmp_path / "d" / "layer-00000.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))
        assert not writer.done(0)


def experts(numbers: list[int]) -> dict[str, InputStatistics]:
    return {
        f"up.{e}": InputStatistics(
            (f"up.{e}",), torch.full((8, 8), e + 1.0), torch.full((8,), 0.1), CODE, source="up.0", tokens=e, pooled=0.5
        )
        for e in numbers
    }


@pytest.mark.parametrize("budget", [0, 3 * 8 * 8 * 4, 1 << 20])
def test_experts_are_written_and_read_in_parts(tmp_path: Path, budget: int) -> None:
    first = layer(0)
    parts = [LayerStatistics(first.inputs | experts([0, 1]), first.cache), LayerStatistics(experts([2, 3, 4]), None)]
    parts[1] = LayerStatistics(parts[1].inputs, first.cache)
    writer = CalibrationWriter(tmp_path / "c", ABOUT)
    writer.write(0, iter(parts), ["a.q", "b", *(f"up.{e}" for e in range(5))], Team())
    writer.finish(1)
    found = list(Calibration(tmp_path / "c").layer(0, FOUR, FOUR, budget))
    counts = [sum(item.source is not None for item in part.inputs.values()) for part in found]
    assert counts == {0: [1] * 5, 768: [3, 2], 1 << 20: [5]}[budget]
    joined = LayerStatistics.join(found)
    for name, item in LayerStatistics.join(parts).inputs.items():
        read = joined.inputs[name]
        assert torch.equal(read.hessian, item.hessian) and torch.equal(read.noise, item.noise)
        assert (read.members, read.code, read.source, read.tokens) == (
            item.members,
            item.code,
            item.source,
            item.tokens,
        )


def test_a_layer_that_is_not_written_to_its_end_leaves_no_file(tmp_path: Path) -> None:
    def parts() -> Iterator[LayerStatistics]:
        yield layer(0)
        raise NestQuantError("a", "b", "c")

    writer = CalibrationWriter(tmp_path / "c", ABOUT)
    with pytest.raises(NestQuantError):
        writer.write(0, parts(), ["a.q", "b"], Team())
    assert not list((tmp_path / "c").glob("layer*"))
