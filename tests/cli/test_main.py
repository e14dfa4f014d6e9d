import logging
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, NoReturn

import pytest
import typer
import yaml

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.base.process import BAD_INPUT
from nestquant_cli.cli import console, main

COMMANDS = ("calibrate", "quantize", "eval-ppl", "eval-tasks", "inspect", "verify")
HEAVY = {"torch", "transformers", "datasets", "lm_eval", "numba", "numpy", "pandas"}


@pytest.fixture(autouse=True)
def global_settings_restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What `console.configure` sets for a whole process is undone for the other tests."""
    for name in (*console.LIBRARY_LEVELS, *console.LIBRARY_BARS):
        monkeypatch.setenv(name, "")  # so that it is restored ...
        monkeypatch.delenv(name)  # ... and absent here
    loggers = [logging.getLogger(name) for name in ("nestquant", *console.LIBRARY_LOGGERS)]
    before = [(logger.level, list(logger.handlers), logger.propagate) for logger in loggers]
    with warnings.catch_warnings():
        yield
    for logger, (level, handlers, propagate) in zip(loggers, before, strict=True):
        logger.level, logger.handlers, logger.propagate = level, handlers, propagate


Outcome = tuple[int, str, str]  # exit code, standard output, standard error


@pytest.fixture
def nestquant(capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs the command line in this process."""

    def run(*arguments: str) -> Outcome:
        with pytest.raises(SystemExit) as leaving:
            main.main(arguments)
        assert isinstance(leaving.value.code, int)
        return leaving.value.code, *capfd.readouterr()

    return run


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException | None], None]:
    """Replaces the commands by one, `work`, that raises what the test says."""

    def install(failure: BaseException | None) -> None:
        app = typer.Typer(pretty_exceptions_enable=False)
        app.callback()(main.options)

        @app.command()
        def work(count: Annotated[int, typer.Option(min=1)] = 1) -> None:
            logging.getLogger("nestquant").info("working [on it]")
            if failure:
                raise failure

        @app.command()
        def rest() -> None: ...

        monkeypatch.setattr(main, "app", app)

    return install


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print('HEAVY', sorted({HEAVY!r} & set(sys.modules))))\n"
        "from nestquant_cli.cli.main import main\n"
        "main(['--help'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "HEAVY []" in done.stdout
    assert all(command in done.stdout for command in COMMANDS)
    assert "nestquant quantize demo --bits 4" in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(nestquant: Callable[..., Outcome], command: str) -> None:
    code, output, _ = nestquant(command, "--help")
    assert code == 0
    assert f"nestquant {command}" in output


def test_no_arguments_show_the_help(nestquant: Callable[..., Outcome]) -> None:
    code, output, _ = nestquant()
    assert code == 0
    assert "Quick start" in output


def test_version(nestquant: Callable[..., Outcome]) -> None:
    code, output, _ = nestquant("--version")
    assert code == 0
    assert re.fullmatch(r"nestquant \d+\.\d+\.\d+\n", output)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["quantise"], "No such command 'quantise'"),
        (["work", "--cuont", "3"], "No such option: --cuont"),
        (["work", "--count", "0"], "--count"),
        (["work", "--count", "many"], "--count"),
        (["work", "more"], "more"),
        (["inspect"], "Missing argument 'CKPT'"),
    ],
)
def test_wrong_usage_is_one_line(
    nestquant: Callable[..., Outcome],
    failing: Callable[[BaseException | None], None],
    arguments: list[str],
    message: str,
) -> None:
    if arguments[0] == "work":
        failing(None)
    code, output, error = nestquant(*arguments)
    assert (code, output, error.count("\n")) == (2, "", 1)
    assert error.startswith("error: ") and message in error and "--help'" in error


@pytest.mark.parametrize(
    ("failure", "expected", "line"),
    [
        (None, 0, ""),
        (typer.Exit(1), 1, ""),
        (NestQuantError("bits [4.3]\nis wrong", "nothing was done", "use 4.25"), 2, r"bits \[4.3\] is wrong; .*; .*"),
        (NestQuantError("x" * 300, "nothing was done", "use y"), 2, "x{300}; nothing was done; use y"),
        (OSError(28, "No space left on device", "/a/b"), 2, "no space left on the disk .*/a/b.*; .*; free space .*"),
        (PermissionError(13, "Permission denied", "/a/b"), 2, "Permission denied .*/a/b.*; .*"),
        (MemoryError(), 2, "out of memory; .*; .*--samples.*"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "out of memory; .*"),
        (ZeroDivisionError("a bug"), 2, r"internal error, ZeroDivisionError: a bug at test_main.py:\d+; .*--debug.*"),
        (SystemExit(1), 2, ""),
        (SystemExit("a library's last words"), 2, "a library's last words"),
        (KeyboardInterrupt(), 130, "interrupted; .*"),
        (typer.Abort(), 130, "interrupted; .*"),
    ],
)
def test_every_failure_is_one_line_and_an_exit_code(
    nestquant: Callable[..., Outcome],
    failing: Callable[[BaseException | None], None],
    failure: BaseException | None,
    expected: int,
    line: str,
) -> None:
    failing(failure)
    code, output, error = nestquant("--quiet", "work")
    assert (code, output) == (expected, "")
    assert re.fullmatch(f"error: {line}\n" if line else "", error)


@pytest.mark.parametrize("arguments", [("--debug", "work"), ("work", "--debug")])
def test_debug_shows_the_traceback_and_then_the_line(
    nestquant: Callable[..., Outcome], failing: Callable[[BaseException | None], None], arguments: tuple[str, ...]
) -> None:
    failing(NestQuantError("cause", "consequence", "remedy"))
    code, _, error = nestquant(*arguments)
    assert code == 2
    assert "Traceback (most recent call last)" in error
    assert error.endswith("\nerror: cause; consequence; remedy\n")


def test_the_log_goes_to_standard_error_unless_quiet(
    nestquant: Callable[..., Outcome], failing: Callable[[BaseException | None], None]
) -> None:
    failing(None)
    assert nestquant("work") == (0, "", "working [on it]\n")
    assert nestquant("work", "--quiet") == (0, "", "")


def test_other_libraries_are_silenced_and_the_user_may_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATASETS_VERBOSITY", "info")
    console.configure(debug=False, quiet=False)
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "error"
    assert os.environ["DATASETS_VERBOSITY"] == "info"


def test_a_failing_command_never_exits_with_1(failing: Callable[[BaseException | None], None]) -> None:
    def broken() -> NoReturn:
        raise AssertionError

    assert console.run(broken) == BAD_INPUT


def test_tables_in_a_pipe_keep_long_names(capfd: pytest.CaptureFixture[str]) -> None:
    name = "model.layers.0." + "x" * 100
    console.table(["tensor", "bits"], [[name, 4.0], ["[b]", None]], title="Bits [of a weight]")
    output = capfd.readouterr().out
    assert "Bits [of a weight]\n" in output and name in output and "[b]" in output


@pytest.mark.parametrize("preset", sorted((Path(__file__).parents[2] / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_presets_say_what_they_are_for_and_have_the_common_keys(preset: Path) -> None:
    assert preset.read_text(encoding="utf-8").startswith("# ")
    recipe = yaml.safe_load(preset.read_text(encoding="utf-8"))
    assert {"method", "weight_bits", "act_bits", "kv_bits", "dataset", "samples", "seqlen", "seed"} <= set(recipe)
