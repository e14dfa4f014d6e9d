"""YAML files with settings: a mapping in which every name occurs once, and numbers are decimal.

`-` and `_` in a name are the same. Numbers are read as the command line reads them. YAML 1.1, which PyYAML follows,
would read 010 as eight, 1:30 as ninety and 1e-3 as text.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from ..base.errors import NestQuantError

_INTEGER = re.compile(r"[-+]?[0-9]+(_[0-9]+)*")
_FLOAT = re.compile(r"[-+]?([0-9]+(_[0-9]+)*\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_NULL, _INT, _REAL, _BOOL, _DATE = (
    f"tag:yaml.org,2002:{name}" for name in ("null", "int", "float", "bool", "timestamp")
)


class _Words(yaml.SafeLoader):
    """Reads every scalar as text, but for null."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, str] = {}
        for key, value in node.value:
            name = str(key.value).replace("-", "_")
            line = f"line {key.start_mark.line + 1}"
            if name in seen:
                raise _Refused(f"has '{seen[name]}' and, in {line}, '{key.value}'", "keep one of them")
            seen[name] = str(key.value)
            if isinstance(value, yaml.ScalarNode) and value.tag == _NULL and value.value == "":
                raise _Refused(f"has no value for '{key.value}' in {line}", "write a value, or leave the line out")
        mapping = super().construct_mapping(node, deep)
        return {key.replace("-", "_") if isinstance(key, str) else key: value for key, value in mapping.items()}


class _Values(_Words):
    """Reads decimal numbers, true and false as such, other scalars as text."""

    def number(self, node: yaml.ScalarNode) -> int | float:
        text = str(self.construct_scalar(node)).replace("_", "")
        if node.tag == _INT:
            return int(text)
        return float(text.replace(".", "") if text[-1].isalpha() else text)  # .inf and .nan


class _Refused(Exception):  # noqa: N818  becomes a NestQuantError, which names the file
    def __init__(self, cause: str, remedy: str) -> None:
        super().__init__(cause)
        self.cause, self.remedy = cause, remedy


def _resolvers(*without: str) -> dict[str, list[tuple[str, Any]]]:
    resolvers = yaml.SafeLoader.yaml_implicit_resolvers
    return {first: [pair for pair in pairs if pair[0] not in without] for first, pairs in resolvers.items()}


_Words.yaml_implicit_resolvers = _resolvers(_INT, _REAL, _DATE, _BOOL)
_Values.yaml_implicit_resolvers = _resolvers(_INT, _REAL, _DATE)
_Values.add_implicit_resolver(_INT, re.compile(f"^(?:{_INTEGER.pattern})$"), list("-+0123456789"))
_Values.add_implicit_resolver(_REAL, re.compile(f"^(?:{_FLOAT.pattern})$"), list("-+.0123456789"))
_Values.add_constructor(_INT, _Values.number)
_Values.add_constructor(_REAL, _Values.number)


def read_settings(path: Path, words: bool = False) -> dict[str, Any]:
    """Reads a YAML file that holds a mapping.

    Args:
        path: path of the file, in UTF-8.
        words: return numbers, true and false as the text that is written.

    Returns:
        values by name. Names have `_` for `-`, and null is None.

    Raises:
        NestQuantError: the file is missing, unreadable, not YAML or not a mapping, or a name occurs twice or has no
            value.
    """
    try:
        value = yaml.load(Path(path).read_text(encoding="utf-8-sig"), _Words if words else _Values)
    except _Refused as refused:
        raise NestQuantError(f"{path} {refused.cause}", "nothing was done", refused.remedy) from refused
    except (OSError, ValueError, OverflowError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise NestQuantError(
            f"{path} cannot be read as YAML ({reason})", "nothing was done", "check the file"
        ) from error
    if not isinstance(value, dict):
        raise NestQuantError(f"{path} is not a YAML mapping", "nothing was done", "write lines such as 'samples: 16'")
    return value
