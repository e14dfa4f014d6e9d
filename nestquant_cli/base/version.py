"""The version of this package, by itself, so that any file can have it; `nestquant_cli.__version__` is the same."""

__version__ = "0.1.0"
