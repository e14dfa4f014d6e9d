"""`save_pretrained` of a packed model: what transformers writes, and what makes it a whole checkpoint of this package.

transformers has no hook after it has written the weights. So a packed model gets a class of its own, that of its
architecture with another `save_pretrained`: `isinstance`, the class's name, `copy` and pickle are as before. An
attribute `save_pretrained` of the model would be plainer, but whatever it calls has to hold the model, and a model in
such a circle keeps its memory after `del model` until the garbage collector finds it.
"""

from functools import cache
from pathlib import Path
from typing import Any

from ...base.errors import NestQuantError
from ...checkpoint.manifest import CONFIG, INDEX, MANIFEST, REPORT, describe_tensors, write_index, write_manifest
from ...models.auto_class import auto_names
from ...modules.embedding import QuantizedEmbedding
from ...storage.files import read_json, write_json
from .config_entries import LOADER, auto_map, write_loader

_SINGLE = "model.safetensors"
_GENERATION = "generation_config.json"


class SavesWhole:
    """Mixed into the class of a packed model; its `hf_quantizer` has the report of the quantization, or None."""

    def save_pretrained(
        self, save_directory: Any, is_main_process: bool = True, *arguments: Any, **settings: Any
    ) -> None:
        """Saves the model as `PreTrainedModel.save_pretrained` does, then completes the checkpoint.

        Index, report and manifest are added where the report of the quantization is known: not for a model that was
        loaded by its Hub id without one. Adapters are saved alone.

        Args:
            save_directory: checkpoint folder; it is made where it does not exist.
            is_main_process: whether this process writes what all have in common.
            arguments, settings: further arguments of `PreTrainedModel.save_pretrained`.
        """
        folder, model = Path(save_directory), vars(self)
        adapters = model.get("_hf_peft_config_loaded", False)  # then they alone are saved
        if is_main_process and not adapters and not folder.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / MANIFEST).unlink(missing_ok=True)
            write_loader(folder)
            model["config"].auto_map = auto_map(auto_names(model["config"]))
        settings.setdefault("save_original_format", False)  # the manifest has the names that the model has
        super().save_pretrained(folder, is_main_process, *arguments, **settings)  # type: ignore[misc]
        quantizer = model.get("hf_quantizer")
        if is_main_process and not adapters and quantizer is not None and quantizer.report is not None:
            complete(folder, quantizer.report)

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *arguments: Any, **settings: Any) -> Any:
        """Resizes the embedding as transformers does; one with coded rows is refused.

        Args:
            new_num_tokens: number of rows.
            arguments, settings: further arguments of `PreTrainedModel.resize_token_embeddings`.
        """
        embedding: Any = super().get_input_embeddings()  # type: ignore[misc]
        if isinstance(embedding, QuantizedEmbedding) and (new_num_tokens, arguments, settings) != (None, (), {}):
            raise NestQuantError(
                f"the embedding has {embedding.num_embeddings} coded rows, and new ones would be in 16 bits",
                "it keeps its rows",
                "resize the original model and quantize it again, or quantize with --embedding-bits 16",
            )
        return super().resize_token_embeddings(new_num_tokens, *arguments, **settings)  # type: ignore[misc]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickles the model by the class of its architecture: this one has no name in a module to be found by."""
        return _blank, (type(self).__mro__[2],), self.__dict__


def _blank(kind: type) -> Any:
    made = saving_class(kind)
    return made.__new__(made)


@cache
def saving_class(kind: type) -> Any:
    """The subclass of a model's class whose models save themselves as whole checkpoints.

    Args:
        kind: class of an architecture.
    """
    same = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return type(kind.__name__, (SavesWhole, kind), same)


def complete(folder: Path, report: dict[str, Any]) -> None:
    """Adds index, report and manifest to what transformers saved.

    Args:
        folder: checkpoint folder with config.json and shards as transformers names them.
        report: content of quantization_report.json.
    """
    sharded = (folder / INDEX).is_file() and not (folder / _SINGLE).is_file()
    shards = sorted(set(read_json(folder / INDEX)["weight_map"].values())) if sharded else [_SINGLE]
    if not all((folder / name).is_file() for name in (CONFIG, *shards)):
        return  # saved in another form, which has no manifest
    tensors = describe_tensors(folder, shards)
    write_index(folder, tensors)
    write_json(folder / REPORT, report)
    others = [name for name in (LOADER, _GENERATION) if (folder / name).is_file()]
    write_manifest(folder, sorted([CONFIG, INDEX, REPORT, *others, *shards]), tensors)
