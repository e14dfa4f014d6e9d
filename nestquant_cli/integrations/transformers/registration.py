"""Registers the quantizer with transformers, now or at the moment transformers is imported.

Importing transformers takes seconds, which `nestquant --help` must not wait for. So while it is not imported, a finder
on sys.meta_path waits for `transformers.quantizers`, the package with the registry, and registers right after it ran.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

_REGISTRY = "transformers.quantizers"
_QUANTIZER = "nestquant_cli.integrations.transformers.quantizer"


def register_with_transformers() -> None:
    """Makes `from_pretrained` know packed checkpoints, whichever of the two packages is imported first."""
    if _REGISTRY in sys.modules:
        importlib.import_module(_QUANTIZER)
    elif not any(isinstance(finder, _AfterRegistry) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterRegistry())


class _AfterRegistry(importlib.abc.MetaPathFinder):
    """Finds the registry's module as usual, with a loader that registers once it has run."""

    def __init__(self) -> None:
        self.asking = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _REGISTRY or self.asking:
            return None
        self.asking = True  # the other finders are asked through the same list
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.asking = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Registering(spec.loader, self)
        return spec


class _Registering(importlib.abc.Loader):
    """Runs the module with its own loader, then imports the quantizer."""

    def __init__(self, loader: importlib.abc.Loader, finder: _AfterRegistry) -> None:
        self.loader, self.finder = loader, finder

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if self.finder in sys.meta_path:
            sys.meta_path.remove(self.finder)
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader  # whoever looks at the module finds it as it always was
        self.loader.exec_module(module)
        importlib.import_module(_QUANTIZER)
