"""Runs a command and prints the peak memory of its processes and its time.

    python scripts/measure_memory.py [--model FOLDER] [--output FILE.json] -- python -m nestquant_cli quantize …

The peak is the largest resident set of a single process of the command (ru_maxrss), including mapped files. With
--model it is also printed as a fraction of that folder's weight files.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="model folder to compare the peak with")
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="the command, after --")
    options = parser.parse_args()
    command = [word for number, word in enumerate(options.command) if number or word != "--"]
    start = time.monotonic()
    code = subprocess.run(command).returncode
    result: dict[str, object] = {
        "command": command,
        "exit_code": code,
        "seconds": round(time.monotonic() - start, 1),
        "peak_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
    }
    if options.model is not None:
        size = sum(path.stat().st_size for path in options.model.glob("*.safetensors"))
        peak = result["peak_bytes"]
        assert isinstance(peak, int)
        result |= {"model_bytes": size, "peak_to_model": round(peak / size, 4)}
    text = json.dumps(result, indent=2)
    print(text)
    if options.output is not None:
        options.output.write_text(text + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
