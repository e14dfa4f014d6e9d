"""The part of a model card that people wrote, which `push` keeps in the checkpoint's folder and on the Hub.

The generated part of the card is between two markers, and generated metadata above it. The first marker has a hash of
everything else at the last push. It shows on which side, here or on the Hub, the card was edited since.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..base.errors import NestQuantError

NOT_PUSHED = "nothing was pushed"
_BEGIN = re.compile(r"<!-- nestquant: written anew by each push, up to the end marker(?:; rest ([0-9a-f]{64}))? -->\n?")
_END = "<!-- nestquant: end -->"
GENERATED = {  # keys of the metadata that `push` generates
    *("license", "license_name", "license_link", "language", "base_model", "base_model_relation", "datasets"),
    *("library_name", "pipeline_tag", "tags", "model-index", "model_name"),
}
TAGS = ("nestquant", "quantized")


@dataclass(frozen=True)
class UserText:
    """What people wrote in a card.

    Attributes:
        metadata: metadata without the generated keys and tags.
        before, after: text before and after the generated part.
        pushed: `digest` at the last push; None if there was no push.
    """

    metadata: Mapping[str, Any] = field(default_factory=dict)
    before: str = ""
    after: str = ""
    pushed: str | None = None

    @property
    def digest(self) -> str:
        """Hex SHA-256 of metadata and text."""
        whole = [dict(self.metadata), self.before, self.after]
        return hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()

    @property
    def empty(self) -> bool:
        """Whether people wrote nothing."""
        return not (self.metadata or self.before or self.after)

    def around(self, generated: str, pushed: str | None) -> str:
        """The body of a card with the generated part between its markers; the first marker records `pushed`."""
        rest = f"; rest {pushed}" if pushed else ""
        marker = f"<!-- nestquant: written anew by each push, up to the end marker{rest} -->"
        parts = [self.before, f"{marker}\n{generated.strip()}\n{_END}", self.after]
        return "\n\n".join(filter(None, parts)) + "\n"


def read_user_text(text: str | None, name: str) -> UserText:
    """Reads what people wrote in a card: everything but the generated part, or all of it if it has no markers.

    Args:
        text: text of the card; None if there is no card.
        name: path or repository of the card, for messages.

    Raises:
        NestQuantError: the metadata of the card is not YAML.
    """
    from huggingface_hub import ModelCard

    if text is None:
        return UserText()
    metadata: dict[str, Any] = {}
    if text.lstrip().startswith("---"):
        try:
            card = ModelCard(text)
            metadata, text = card.data.to_dict(), card.text
        except Exception as error:  # of the YAML reader, or of the checks of the metadata
            reason = " ".join(str(error).split())
            raise NestQuantError(
                f"the metadata of {name} cannot be read ({reason})", NOT_PUSHED, "repair it"
            ) from error
    tags = [tag for tag in metadata.get("tags") or [] if tag not in TAGS]
    kept = {key: value for key, value in metadata.items() if key not in GENERATED} | ({"tags": tags} if tags else {})
    begin = _BEGIN.search(text)
    if begin is None:
        return UserText(kept, "", text.strip())
    after = text[begin.end() :].partition(_END)[2]
    return UserText(kept, text[: begin.start()].strip(), after.strip(), begin[1])


def edited_since_push(here: UserText, there: UserText, repo: str) -> UserText:
    """The text of the card to keep: the one that was edited since the last push.

    Args:
        here: text of the card in the checkpoint's folder.
        there: text of the card on the Hub.
        repo: Hub id of the checkpoint, for messages.

    Raises:
        NestQuantError: both were edited, in different ways.
    """
    if here.digest == there.digest or there.empty or there.digest == there.pushed:
        return here
    if here.empty or here.digest == here.pushed:
        return there
    raise NestQuantError(
        f"README.md was edited here and in {repo}, in different ways",
        NOT_PUSHED,
        "make the text outside the markers the same in both, or remove README.md here to take that of the Hub",
    )
