"""One hash for a model's configuration and weights, so that what was measured on one model is not used on another.

The rule: SHA-256 over the configuration without the keys that do not change the model, then for every weight file in
order of its name: name, size and content. The content is the whole file while all files together hold at most 2 GB;
above that it is the first MiB (where the header of a safetensors file lies, with name, shape and offset of every
tensor) and 256 pieces of 64 KiB at even distances, the end of the file included, which reads 17 MiB a file.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..storage.files import sha256_file

RULE = "nestquant model fingerprint 1"
WHOLE_FILES_UP_TO = 2 * 10**9  # bytes in all; about 5 s of hashing
HEAD = 1 << 20
PIECE = 1 << 16
PIECES = 256
UNRELATED_KEYS = {"_name_or_path", "name_or_path", "_model_name_or_path", "transformers_version"}


def fingerprint_files(config: dict[str, Any], files: Sequence[Path], whole_files_up_to: int = WHOLE_FILES_UP_TO) -> str:
    """Hex SHA-256 of a configuration and weight files by the rule at the head of this module.

    Args:
        config: the parsed config.json; empty for a GGUF file, which holds its own.
        files: the weight files.
        whole_files_up_to: total size in bytes above which files are sampled.
    """
    digest = hashlib.sha256(RULE.encode())
    kept = {key: value for key, value in config.items() if key not in UNRELATED_KEYS}
    digest.update(json.dumps(kept, sort_keys=True).encode())
    sampled = sum(file.stat().st_size for file in files) > whole_files_up_to
    for file in sorted(files, key=lambda file: file.name):
        digest.update(f"\n{file.name} {file.stat().st_size} ".encode())
        digest.update((_sampled_hash(file) if sampled else sha256_file(file)).encode())
    return digest.hexdigest()


def _sampled_hash(file: Path) -> str:
    last = max(file.stat().st_size - PIECE, 0)
    with open(file, "rb") as stream:
        digest = hashlib.sha256(stream.read(HEAD))
        for piece in range(PIECES):
            stream.seek(last * piece // (PIECES - 1))
            digest.update(stream.read(PIECE))
    return digest.hexdigest()
