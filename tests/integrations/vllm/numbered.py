"""Does what scripts/serving/engine.py does, in a process that has used up some numbers of coded layers before.

So it is where an engine is not the first of its process.
"""

import json
import os
import sys

from nestquant_cli.integrations.vllm import operators
from scripts.serving.engine import answers

if __name__ == "__main__":
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    for _ in range(5):
        operators.number_of(set())
    print(json.dumps(answers(sys.argv[1], *json.loads(sys.argv[2]))))
