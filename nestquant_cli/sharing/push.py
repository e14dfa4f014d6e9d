"""Pushes a packed checkpoint to the Hugging Face Hub: verified, with a model card, private unless asked otherwise."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from ..base.errors import NestQuantError
from ..checkpoint.inspect import inspect
from ..checkpoint.manifest import MANIFEST
from ..checkpoint.read import open_checkpoint
from ..checkpoint.verify import verify
from ..models.auto_class import IMAGES, auto_names
from ..models.hub import reason_of
from ..models.processor_files import has_processor
from ..models.source import fingerprint, load_config, load_tokenizer, resolve
from ..storage.files import write_text
from .card import CARRIED, Facts, Origin, model_card
from .results import read_results
from .user_text import NOT_PUSHED, edited_since_push, read_user_text

T = TypeVar("T")

CARD = "README.md"


@dataclass(frozen=True)
class PushOptions:
    """What to push; the fields are the options of `nestquant push`.

    Attributes:
        folder: checkpoint folder.
        repo: Hub id to push to.
        base: Hub id of the base model; None is the model that the checkpoint was made from, else the baseline of the
            results.
        license: licence of the base model; None is the one on its card on the Hub.
        results: JSON files that `eval-ppl` or `eval-tasks` wrote.
        public: whether to make the repository public after the upload.
        dry_run: whether to stop after writing the card.
    """

    folder: Path
    repo: str
    base: str | None = None
    license: str | None = None
    results: tuple[Path, ...] = ()
    public: bool = False
    dry_run: bool = False


def hub_api() -> Any:
    """A client of the Hub."""
    from huggingface_hub import HfApi

    return HfApi()


def push(options: PushOptions, api: Any = None) -> list[str]:
    """Verifies a checkpoint, writes the card into its folder, and uploads the files in one commit.

    Text that people wrote outside the generated part of the card stays, here and on the Hub, see `sharing.user_text`.

    Args:
        options: what to push, and where to.
        api: client with the interface of `huggingface_hub.HfApi`; None is a new one.

    Returns:
        names of the files that are, or would be, uploaded.

    Raises:
        NestQuantError: a damaged checkpoint, results of another one, an unknown base model or licence, a repository
            that is public already, a README.md that was edited here and on the Hub, or a refusal of the Hub.
    """
    api = hub_api() if api is None else api
    _refuse_no_id(options.repo)
    verify(options.folder).refuse()
    measured, commands, baseline = read_results(options.results, fingerprint(resolve(str(options.folder))))
    inspection = inspect(options.folder)
    origin = _origin(options, options.base or inspection.recipe.get("base_model") or baseline, api)
    packed = {*open_checkpoint(options.folder)["files"], MANIFEST, "config.json", CARD}
    files = sorted(packed | _tokenizer_files(options.folder))
    facts = Facts(options.repo, origin, inspection, measured, commands, _auto(options.folder))
    card = options.folder / CARD
    kept = read_user_text(card.read_text(encoding="utf-8") if card.is_file() else None, str(card))
    write_text(card, model_card(facts, kept, kept.pushed))
    if options.dry_run:
        return files
    _call(lambda: api.create_repo(repo_id=options.repo, private=True, exist_ok=True))
    info = _call(lambda: api.model_info(options.repo))
    if not options.public and info.private is False:
        raise NestQuantError(f"{options.repo} is public already", NOT_PUSHED, "give --public, or another name")
    kept = edited_since_push(
        kept, read_user_text(_card_on_hub(options.repo, info, api), f"the card of {options.repo}"), options.repo
    )
    write_text(card, model_card(facts, kept, kept.digest))
    about = {"repo_id": options.repo, "folder_path": str(options.folder), "allow_patterns": files}
    about |= {"commit_message": "Upload a checkpoint packed by nestquant", "parent_commit": info.sha}
    _call(lambda: api.upload_folder(**about))
    if options.public:
        _call(lambda: api.update_repo_settings(repo_id=options.repo, private=False))
    return files


def _card_on_hub(repo: str, info: Any, api: Any) -> str | None:
    """Text of the card on the Hub, None if there is none. If it is edited after this, the Hub refuses the commit."""
    if CARD not in [file.rfilename for file in info.siblings or ()]:
        return None
    path = _call(lambda: api.hf_hub_download(repo, CARD, revision=info.sha))
    return Path(path).read_text(encoding="utf-8")


def _tokenizer_files(folder: Path) -> set[str]:
    """Names of the tokenizer's files in a checkpoint; the manifest lacks those that were saved after it was written."""
    with TemporaryDirectory() as temporary:
        load_tokenizer(resolve(str(folder))).save_pretrained(temporary)
        names = {path.name for path in Path(temporary).iterdir()}
    return {name for name in names if (folder / name).is_file()}


def _auto(folder: Path) -> str:
    """Name of the Auto class that opens a checkpoint: that for images and text where it takes images."""
    config = load_config(resolve(str(folder)))
    names = auto_names(config)
    return IMAGES if has_processor(config) and IMAGES in names else names[0]


def _origin(options: PushOptions, base: str | None, api: Any) -> Origin:
    if base is None:
        raise NestQuantError("the base model is not known", NOT_PUSHED, "give its Hub id with --base-model")
    _refuse_no_id(base)
    if options.license is not None:
        return Origin(base, {"license": options.license})
    data = _call(lambda: api.model_info(base)).card_data
    metadata = {key: getattr(data, key, None) for key in CARRIED}
    if not metadata["license"]:
        raise NestQuantError(f"the card of {base} names no licence", NOT_PUSHED, "give it with --license")
    return Origin(base, metadata)


def _refuse_no_id(name: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise NestQuantError(f"'{name}' is not a Hub id", NOT_PUSHED, "give one such as you/model") from error


def _call(request: Callable[[], T]) -> T:
    try:
        return request()
    except Exception as error:  # the client's transport library, and with it the error types, differs between versions
        raise NestQuantError(
            f"the Hugging Face Hub refused ({reason_of(error)})",
            "the checkpoint was not pushed, or only a part of it",
            "check names and connection, run 'hf auth login' with a token that may write, and push again",
        ) from error
