"""The part of a model card that people wrote: it is kept, in the checkpoint's folder and on the Hub.

What `push` generates stands between two markers, with the metadata above. The first marker has a hash of the rest as it
was at the last push, by which one sees on which side it was edited since.
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
GENERATED = {  # keys of the metadata that are ours
    *("license", "license_name", "license_link", "language", "base_model", "base_model_relation", "datasets"),
    *("library_name", "pipeline_tag", "tags", "model-index", "model_name"),
}
TAGS = ("nestquant", "quantized")


@dataclass(frozen=True)
class UserText:
    """What is not generated.

    Attributes:
        metadata: keys that are none of ours; of `tags`, those that are none of ours.
        before, after: text around the generated part.
        pushed: `digest` at the last push; None where there was none.
    """

    metadata: Mapping[str, Any] = field(default_factory=dict)
    before: str = ""
    after: str = ""
    pushed: str | None = None

    @property
    def digest(self) -> str:
        """A hash of all three parts."""
        whole = [dict(self.metadata), self.before, self.after]
        return hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()

    @property
    def empty(self) -> bool:
        """Whether nobody wrote anything."""
        return not (self.metadata or self.before or self.after)

    def around(self, generated: str, pushed: str | None) -> str:
        """The body of a card with the generated part in it; `pushed` is noted in the marker."""
        rest = f"; rest {pushed}" if pushed else ""
        marker = f"<!-- nestquant: written anew by each push, up to the end marker{rest} -->"
        parts = [self.before, f"{marker}\n{generated.strip()}\n{_END}", self.after]
        return "\n\n".join(filter(None, parts)) + "\n"


def read_user_text(text: str | None, place: str) -> UserText:
    """What a card that is there has beside the generated part; all of it where it has no markers.

    Raises:
        NestQuantError: its metadata is not YAML. `place` is where the card lies.
    """
    from huggingface_hub import ModelCard

    if text is None:
        return UserText()
    metadata: dict[str, Any] = {}
    if text.lstrip().startswith("---"):
        try:
            card = ModelCard(text)
            metadata, text = card.data.to_dict(), card.text
        except Exception as error:  # of the YAML reader, or about what the metadata may be
            reason = " ".join(str(error).split())
            raise NestQuantError(f"the metadata of {place} cannot be read ({reason})", NOT_PUSHED, "mend it") from error
    tags = [tag for tag in metadata.get("tags") or [] if tag not in TAGS]
    own = {key: value for key, value in metadata.items() if key not in GENERATED} | ({"tags": tags} if tags else {})
    begin = _BEGIN.search(text)
    if begin is None:
        return UserText(own, "", text.strip())
    after = text[begin.end() :].partition(_END)[2]
    return UserText(own, text[: begin.start()].strip(), after.strip(), begin[1])


def newest(here: UserText, there: UserText, repo: str) -> UserText:
    """Which of both is to stay: the one that was edited since the last push.

    Raises:
        NestQuantError: both were, in different ways.
    """
    if here.digest == there.digest or there.empty or there.digest == there.pushed:
        return here
    if here.empty or here.digest == here.pushed:
        return there
    raise NestQuantError(
        f"README.md was edited here and in {repo}, each in its own way",
        NOT_PUSHED,
        "make the text outside the markers the same in both, or remove README.md here to take that of the Hub",
    )
