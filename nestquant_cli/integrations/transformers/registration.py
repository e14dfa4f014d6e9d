"""Registers the quantizer with transformers, now or at the moment transformers is imported.

Importing transformers takes seconds, which neither `nestquant --help` nor `import nestquant_cli` may wait for, and
transformers has no entry points by which it would find a quantizer by itself. So while it is not imported, a finder on
sys.meta_path waits for `transformers.quantizers`, the package with the registry, and lets its loader register the
quantizer right after it has run that package. Importing transformers here would be plainer and is what this avoids.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

_REGISTRY = "transformers.quantizers"
_QUANTIZER = "nestquant_cli.integrations.transformers.quantizer"


def register_with_transformers() -> None:
    """Makes `from_pretrained` know packed checkpoints, whichever of the two packages is imported first."""
    if _REGISTRY in sys.modules:
        importlib.import_module(_QUANTIZER)
    elif not any(isinstance(finder, _RegistryFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _RegistryFinder())


class _RegistryFinder(importlib.abc.MetaPathFinder):
    """Finds the registry's package as usual; when it is run, the finder goes and the quantizer is registered."""

    def __init__(self) -> None:
        self._asking = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _REGISTRY or self._asking:
            return None
        self._asking = True  # the other finders are asked through the same list
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._asking = False
        if spec is not None and spec.loader is not None:
            self._register_after(spec.loader)
        return spec

    def _register_after(self, loader: Any) -> None:
        run = loader.exec_module

        def run_and_register(module: ModuleType) -> None:
            del loader.exec_module  # whoever looks at the loader later finds its own method
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            run(module)
            importlib.import_module(_QUANTIZER)

        loader.exec_module = run_and_register
