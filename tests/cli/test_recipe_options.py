"""Options of a recipe: what the shell offers is what there is."""

from typer.testing import CliRunner

from nestquant_cli.cli.main import app
from nestquant_cli.codecs.registry import CODECS


def test_the_shell_offers_every_codec() -> None:
    environment = {"_NESTQUANT_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "nestquant quantize demo --method "}
    offered = CliRunner().invoke(app, [], env=environment, prog_name="nestquant").stdout
    assert all(name in offered for name in CODECS), offered
