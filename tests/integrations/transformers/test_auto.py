"""A checkpoint in a process that does not import nestquant: by its `auto_map`, or refused with what to install."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nestquant_cli.checkpoint.manifest import MANIFEST
from nestquant_cli.checkpoint.verify import verify
from nestquant_cli.integrations.transformers.config_entries import LOADER, auto_map, loader_text
from tests.families import load, logits, random_ids

ROOT = Path(__file__).parents[3]
WITHOUT = """
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == 'nestquant_cli':
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)
sys.meta_path.insert(0, Missing())
"""
LOAD = """
import torch, transformers
config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code={config})
model = transformers.AutoModelForCausalLM.from_pretrained(folder, config=config, trust_remote_code=True)
ids = torch.tensor([json.loads(sys.argv[2])])
with torch.no_grad():
    print(json.dumps([type(model).__name__, model(ids).logits.double().sum().item()]))
"""


def alone(script: str, tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a script elsewhere, in a process that can import nestquant but does not."""
    start = "import json, sys\nassert 'nestquant_cli' not in sys.modules\nfolder = sys.argv[1]\n"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-c", start + script, *arguments]
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_trusted_code_loads_the_packed_model(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The configuration was loaded without trust: the model's own entry is what registers."""
    ids = random_ids(1, 12)
    run = alone(LOAD.format(config=False), tmp_path, str(tiny_checkpoint), json.dumps(ids[0].tolist()))
    assert run.returncode == 0, run.stderr
    expected = logits(load(tiny_checkpoint), ids).double().sum().item()
    assert json.loads(run.stdout) == ["LlamaForCausalLM", expected]


def test_without_the_package_the_error_says_what_to_install(tiny_checkpoint: Path, tmp_path: Path) -> None:
    run = alone(WITHOUT + LOAD.format(config=True), tmp_path, str(tiny_checkpoint), "[2]")
    assert run.returncode == 1
    assert run.stderr.strip().endswith("ImportError: this checkpoint is packed by nestquant: pip install nestquant")


def test_a_checkpoint_of_before_has_no_code_and_loads(
    tiny_checkpoint: Path, copy: Path, rewrite: Callable[[str, Any], None]
) -> None:
    (copy / LOADER).unlink()
    rewrite(MANIFEST, lambda manifest: manifest["files"].pop(LOADER))
    rewrite("config.json", lambda config: config.pop("auto_map"))
    verify(copy).refuse()
    ids = random_ids(1, 12)
    assert logits(load(copy, trust_remote_code=True), ids).equal(logits(load(tiny_checkpoint), ids))


def test_verify_names_foreign_code(copy: Path, rehash: Callable[[], None]) -> None:
    (copy / LOADER).write_text(loader_text() + "print('mine')\n", encoding="utf-8")
    rehash()
    (copy / "tokenization_mine.py").write_text("", encoding="utf-8")
    problems = {str(problem) for problem in verify(copy).problems}
    assert problems == {f"{name}: is code that nestquant did not write" for name in (LOADER, "tokenization_mine.py")}


@pytest.mark.parametrize(
    "places",
    [auto_map([]) | {"AutoConfig": "org/other--modeling.Config"}, {"AutoTokenizer": [None]}, "AutoConfig", None],
)
def test_verify_names_an_auto_map_that_leads_elsewhere(
    copy: Path, rewrite: Callable[[str, Any], None], places: Any
) -> None:
    rewrite("config.json", lambda config: config.update(auto_map=places))
    told = "config.json: has an auto_map that leads to code that nestquant did not write"
    assert told in {str(problem) for problem in verify(copy).problems}
