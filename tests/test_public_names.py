"""The names that the package exports: they are there, and each is imported when it is first used."""

import subprocess
import sys

import pytest

import nestquant_cli


def test_every_exported_name_is_there_once_asked_for() -> None:
    for name in nestquant_cli.__all__:
        value = getattr(nestquant_cli, name)
        assert value is getattr(nestquant_cli, name) and name in dir(nestquant_cli)
    assert set(nestquant_cli._MODULES) < set(nestquant_cli.__all__)
    with pytest.raises(AttributeError, match="'nestquant_cli' has no attribute 'quantise'"):
        nestquant_cli.quantise  # noqa: B018


def test_an_error_can_be_named_without_torch() -> None:
    program = "import sys; from nestquant_cli import NestQuantError, __version__; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_star_import_brings_them_all() -> None:
    names: dict[str, object] = {}
    exec("from nestquant_cli import *", names)
    assert {*nestquant_cli.__all__} <= names.keys()
