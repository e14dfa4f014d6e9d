"""Files of an export that let others load it: code that applies the transforms, and a note."""

import json
from typing import Any

MODULE, CLASS = "modeling_export", "Transformed"
NOTE = "README.md"

# transformers reads a `transform_config` and does not apply it, so the code below has compressed-tensors apply it. A
# configuration of transformers that knows of transforms has the attribute of that name; nothing is applied twice.
_CODE = '''"""{base} with the input transforms of this checkpoint, applied by compressed-tensors."""

import torch
from compressed_tensors.transform import TransformConfig, TransformFactory
from compressed_tensors.transform.factory.base import TransformBase
from transformers import CompressedTensorsConfig, {base}

GROUPS = {groups}


class {name}({base}):
    _keep_in_fp32_modules_strict = {kept}

    def __init__(self, config, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        if hasattr(CompressedTensorsConfig(), "transform_config"):
            return
        self.transform_config = TransformConfig(config_groups=GROUPS)
        with torch.device("cpu"):  # for the constants of a transform; its weight goes where the model's weights are
            for name, scheme in self.transform_config.config_groups.items():
                TransformFactory.from_scheme(scheme, name=name).apply_to_model(self, use_tqdm=False)
        owners = {{}}
        for name, module in self.named_modules():
            if isinstance(module, TransformBase):
                owner = owners.setdefault(id(module.weight), name)
                if owner != name:
                    self.all_tied_weights_keys[f"{{name}}.weight"] = f"{{owner}}.weight"
'''

_NOTE = """# An export for tools that read compressed-tensors

The quantized matrices of a checkpoint of nestquant, as symmetric integers of {bits} bits with their scales.
{how}
"""
_PLAIN = """
```python
{auto}.from_pretrained(folder)
```
"""
_TRANSFORMED = """
The inputs of these matrices are multiplied by the matrices `{names}` first, as `transform_config` in
config.json says. transformers reads that entry and does not apply it: without the code in `{module}.py`, which
compressed-tensors is needed for and nothing else, the model loads and computes nonsense.

```python
{auto}.from_pretrained(folder, trust_remote_code=True)
```
"""


def code(base: str, groups: dict[str, Any]) -> str:
    """The module that transformers runs with `trust_remote_code=True`.

    Args:
        base: name of the model's class in transformers.
        groups: the groups of the transform config.
    """
    kept = sorted(f"{name}_input" for name in groups)
    return _CODE.format(base=base, name=CLASS, groups=json.dumps(groups, indent=4), kept=json.dumps(kept))


def note(bits: int, groups: dict[str, Any], auto: str) -> str:
    """How to load the export, for its README.md.

    Args:
        bits: bits of its integers.
        groups: the groups of the transform config.
        auto: name of the Auto class that opens it.
    """
    names = "`, `".join(f"{name}_input" for name in sorted(groups))
    how = (_TRANSFORMED if groups else _PLAIN).format(names=names, module=MODULE, auto=auto)
    return _NOTE.format(bits=bits, how=how)
