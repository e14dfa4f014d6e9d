"""Whatever a header, a config.json or a manifest says, a reader gives a clear error or a result."""

import copy as copying
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.calibration.store import FILE, Calibration
from nestquant_cli.checkpoint.inspect import inspect
from nestquant_cli.checkpoint.manifest import MANIFEST, describe_files, read_manifest
from nestquant_cli.checkpoint.read import check_checkpoint
from nestquant_cli.checkpoint.verify import verify
from nestquant_cli.e8.shape import shape_for_bits
from nestquant_cli.models.shards import DTYPES, read_shard, read_tensor
from nestquant_cli.modules.parse_layout import parse_layout

MANY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
FEW = settings(MANY, max_examples=40)

numbers = st.integers() | st.floats() | st.sampled_from([-1, 0, 1, 8, 1 << 31, 1 << 63, 10**400])
words = st.text(max_size=8) | st.sampled_from(["", "..", "/etc/passwd", "\0", "a/b", "\ud800", "F32", "uint8"])
anything = st.recursive(
    st.none() | st.booleans() | numbers | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
    max_leaves=12,
)
entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(sorted(DTYPES)) | anything,
        "shape": st.lists(st.integers(-1, 9) | numbers, max_size=3) | anything,
        "data_offsets": st.lists(st.integers(-1, 40) | numbers, max_size=3) | anything,
    },
)


def clear(work: Callable[[], object]) -> None:
    """Runs `work`, which may fail with one line and in no other way."""
    try:
        work()
    except NestQuantError as error:
        assert "\n" not in str(error) and str(error).count("; ") >= 2


def mutated(value: Any, chance: random.Random, new: Any) -> Any:
    """A copy of a JSON value with one place changed: replaced, removed or repeated."""
    value = copying.deepcopy(value)
    place = value
    while isinstance(place, dict | list) and place:
        key = chance.choice(list(place)) if isinstance(place, dict) else chance.randrange(len(place))
        inner = place[key]
        if not isinstance(inner, dict | list) or not inner or chance.random() < 0.15:
            if chance.random() < 0.2:
                del place[key]
            else:
                place[key] = new
            break
        place = inner
    return value


def write_json(path: Path, value: Any) -> None:
    path.write_bytes(json.dumps(value).encode("utf-8", "surrogatepass"))


@MANY
@given(header=st.dictionaries(words, entries | anything, max_size=3) | anything, data=st.binary(max_size=40))
def test_shards_with_any_header(tmp_path: Path, header: Any, data: bytes) -> None:
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)

    def read() -> None:
        for entry in read_shard(path).entries.values():
            read_tensor(path, entry)

    clear(read)


@MANY
@given(content=st.binary(max_size=60))
def test_shards_of_any_bytes(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    clear(lambda: read_shard(path))


@MANY
@given(value=anything)
def test_layouts_of_any_kind(value: Any) -> None:
    clear(lambda: parse_layout(value))


@pytest.fixture(scope="module")
def victim(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy whose files each example changes and puts back."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("victim") / "copy"))


@MANY
@given(seed=st.integers(0, 1 << 32), new=anything)
def test_layouts_with_one_place_changed(victim: Path, seed: int, new: Any) -> None:
    config = json.loads((victim / "config.json").read_text(encoding="utf-8"))
    clear(lambda: parse_layout(mutated(config["quantization_config"]["layout"], random.Random(seed), new)))


def look(folder: Path) -> None:
    """All that reads a folder before it trusts it."""
    clear(lambda: read_manifest(folder))
    clear(lambda: check_checkpoint(folder))
    clear(lambda: inspect(folder))
    clear(lambda: verify(folder))


@FEW
@given(seed=st.integers(0, 1 << 32), new=anything)
def test_configs_with_one_place_changed_and_right_hashes(victim: Path, seed: int, new: Any) -> None:
    config, manifest = (victim / "config.json").read_bytes(), (victim / MANIFEST).read_bytes()
    try:
        write_json(victim / "config.json", mutated(json.loads(config), random.Random(seed), new))
        described = json.loads(manifest)
        described["files"] |= describe_files(victim, ["config.json"])
        write_json(victim / MANIFEST, described)
        look(victim)
    finally:
        (victim / "config.json").write_bytes(config)
        (victim / MANIFEST).write_bytes(manifest)


@FEW
@given(seed=st.integers(0, 1 << 32), new=anything)
def test_manifests_with_one_place_changed(victim: Path, seed: int, new: Any) -> None:
    manifest = (victim / MANIFEST).read_bytes()
    try:
        write_json(victim / MANIFEST, mutated(json.loads(manifest), random.Random(seed), new))
        look(victim)
    finally:
        (victim / MANIFEST).write_bytes(manifest)


@pytest.mark.parametrize("name", ["config.json", MANIFEST])
def test_nesting_without_end_is_refused(copy: Path, name: str) -> None:
    (copy / name).write_text("[" * 200_000)
    with pytest.raises(NestQuantError, match=r"not valid JSON|damaged|truncated|too long|altered"):
        check_checkpoint(copy)
    with pytest.raises(NestQuantError):
        read_manifest(copy) if name == MANIFEST else inspect(copy)


@MANY
@given(seed=st.integers(0, 1 << 32), new=anything)
def test_calibrations_with_one_place_changed(tmp_path: Path, seed: int, new: Any) -> None:
    code = {"unit": 0.03, "multipliers": [3, 4]}
    layer = {"sha256": "0" * 64, "inputs": {"a": {"members": ["a"], "code": code}}, "cache": None}
    write_json(tmp_path / FILE, mutated({"format_version": 1, "seed": 0, "layers": [layer]}, random.Random(seed), new))
    (tmp_path / "layer-00000.safetensors").write_bytes(b"")
    four = shape_for_bits(4)
    clear(lambda: list(Calibration(tmp_path).layer(0, four, four)))
