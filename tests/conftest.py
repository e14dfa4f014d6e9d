"""What several tests share: a tiny random model with a tokenizer, a text, and the evaluation data where it lies."""

import os

# Before any library reads them: no test may reach for the network, and small models gain nothing from threads.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Without a GPU the Triton kernels run in Triton's interpreter.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import hypothesis
import pytest

# A busy machine is no failure. All else is Hypothesis' own choice, which depends on whether it runs in CI.
hypothesis.settings.register_profile("untimed", hypothesis.settings(deadline=None))
hypothesis.settings.load_profile("untimed")

if TYPE_CHECKING:
    from nestquant_cli.pipeline.recipe import Recipe

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

TEXT = """The lattice holds every point whose coordinates are all whole or all half, and whose sum is even.
To round a vector, round each coordinate; when the parity is wrong, flip the one that was rounded worst.
Two cosets are tried in this way, and the nearer of the two answers is the nearest point of the lattice.
"""

TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'robot' %}{{ raise_exception('no robots') }}{% endif %}"
    "{{ message['role'][0] + ': ' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'a: ' }}{% endif %}"
)


@pytest.fixture(scope="session")
def tiny_tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer of 300 tokens; it adds no BOS but has one, `<s>`, with id 0."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", model_max_length=256
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def bos_tokenizer_folder(tiny_tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same tokenizer, which puts its BOS in front of every text by itself, as those of Llama and Gemma do."""
    import json
    import shutil

    folder = Path(shutil.copytree(tiny_tokenizer_folder, tmp_path_factory.mktemp("bos-tokenizer") / "tokenizer"))
    state = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    first, text, second = (
        {"SpecialToken": {"id": "<s>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"Sequence": {"id": "B", "type_id": 0}},
    )
    state["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [first, text],
        "pair": [first, text, second],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def make_model_folder(tiny_tokenizer_folder: Path) -> Callable[[Path, int], Path]:
    """Writes a Llama of 64 dimensions and 2 layers with random weights from a seed, and the tokenizer."""
    import shutil

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(folder: Path, seed: int) -> Path:
        config = LlamaConfig(
            vocab_size=300,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            initializer_range=0.2,
            bos_token_id=0,
            eos_token_id=1,
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            LlamaForCausalLM(config).save_pretrained(folder)
        shutil.copytree(tiny_tokenizer_folder, folder, dirs_exist_ok=True)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory, make_model_folder: Callable[[Path, int], Path]) -> Path:
    """A tiny Llama in a Hugging Face folder. Shared by the whole session: copy it before changing anything."""
    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny-llama", 0)


@pytest.fixture(scope="session")
def talking(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a chat template."""
    import shutil

    folder = Path(shutil.copytree(tiny_model_folder, tmp_path_factory.mktemp("talking") / "tiny"))
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def talking_packed(talking: Path, tiny_text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same at W4A4KV4."""
    from tests.families import pack

    return pack(talking, tiny_text_file, tmp_path_factory.mktemp("talking-packed") / "packed")


@pytest.fixture(scope="session")
def tiny_text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of about 15 kB, some thousand tokens of the tiny tokenizer."""
    path = tmp_path_factory.mktemp("text") / "tiny.txt"
    path.write_text("\n\n".join(f"{number}. {TEXT}" for number in range(50)), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_recipe(tiny_text_file: Path) -> "Recipe":
    """W4A4KV4 from two short windows."""
    from nestquant_cli.pipeline.recipe import Recipe

    return Recipe(dataset=str(tiny_text_file), samples=2, seqlen=64)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path, tiny_recipe: "Recipe") -> Path:
    """The tiny model packed. Shared by the whole session: copy it to change anything."""
    from nestquant_cli.models.source import resolve
    from nestquant_cli.pipeline.quantize import quantize

    folder = tmp_path_factory.mktemp("packed") / "tiny"
    quantize(resolve(str(tiny_model_folder)), tiny_recipe, folder, "cpu")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The evaluation data beside the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the evaluation data is not at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture
def copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the packed tiny model that a test may damage."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


@pytest.fixture
def rehash(copy: Path) -> Callable[[], None]:
    """Makes the manifest's sizes and hashes of files those of the copy."""

    from nestquant_cli.checkpoint.manifest import MANIFEST, describe_files

    def change() -> None:
        manifest = json.loads((copy / MANIFEST).read_text(encoding="utf-8"))
        manifest["files"] = describe_files(copy, list(manifest["files"]))
        (copy / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")

    return change


@pytest.fixture
def rewrite(copy: Path, rehash: Callable[[], None]) -> Callable[[str, Any], None]:
    """Changes a JSON file of the copy, by a function in place or else to a value, and brings the manifest in line."""

    from nestquant_cli.checkpoint.manifest import MANIFEST

    def change(name: str, edit: Any) -> None:
        value = json.loads((copy / name).read_text(encoding="utf-8"))
        if callable(edit):
            edit(value)
        else:
            value = edit
        (copy / name).write_text(json.dumps(value), encoding="utf-8")
        if name != MANIFEST:
            rehash()

    return change
