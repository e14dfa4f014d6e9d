"""Whichever of the two packages is imported first, transformers knows packed checkpoints; ours is cheap to import."""

import subprocess
import sys

import pytest

KNOWS = (
    "from transformers.quantizers import auto\n"
    "quantizer, config = (known['nestquant'].__name__ for known in (\n"
    "    auto.AUTO_QUANTIZER_MAPPING, auto.AUTO_QUANTIZATION_CONFIG_MAPPING))\n"
    "assert (quantizer, config) == ('NestQuantHfQuantizer', 'NestQuantConfig')\n"
)
UNTOUCHED = (
    "import inspect, sys, transformers.quantizers as registry\n"
    "assert type(registry.__spec__.loader).__name__ == 'SourceFileLoader', registry.__spec__\n"
    "assert type(registry.__loader__).__name__ == 'SourceFileLoader'\n"
    "assert inspect.getsource(registry)\n"
    "assert not any('nestquant' in type(finder).__module__ for finder in sys.meta_path)\n"
)


def run(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_imports_nothing_heavy() -> None:
    run(
        "import sys, nestquant_cli\n"
        "heavy = {'torch', 'transformers', 'numpy', 'numba', 'datasets', 'lm_eval'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )


@pytest.mark.parametrize(
    "imports",
    [
        "import transformers, nestquant_cli",
        "import transformers.quantizers, nestquant_cli",
        # importing ours twice, and someone who only looks for the module, do no harm
        "import importlib, importlib.util, nestquant_cli\n"
        "importlib.reload(nestquant_cli)\n"
        "assert importlib.util.find_spec('transformers.quantizers')",
    ],
)
def test_any_order_of_imports_registers_and_leaves_the_registry_as_it_was(imports: str) -> None:
    run(f"{imports}\n{KNOWS}{UNTOUCHED}")
