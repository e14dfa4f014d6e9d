"""Text that every Python ships, for a demo without downloads: the language reference behind `help()`.

Its topics quote one another ("specialnames" holds all of "customization"), so paragraphs are de-duplicated before the
topics are dealt out to the two splits: no paragraph is in both. The text differs a little between Python versions.
"""

import pydoc_data.topics

SHORTEST_DOCUMENT = 200  # characters; what is left of a topic quoted elsewhere is mostly its heading
TEST_EVERY = 3  # every third document, longest first, is for evaluation


def demo_documents(split: str) -> list[str]:
    """The documents of one split, "train" or "test", always in the same order for one Python version."""
    texts = [text for _, text in sorted(pydoc_data.topics.topics.items())]
    seen: set[str] = set()
    documents = []
    for text in sorted(texts, key=len, reverse=True):
        document = "\n\n".join(_unseen(text.split("\n\n"), seen))
        if len(document) >= SHORTEST_DOCUMENT:
            documents.append(document)
    is_test = [index % TEST_EVERY == TEST_EVERY - 1 for index in range(len(documents))]
    return [document for document, test in zip(documents, is_test, strict=True) if test == (split == "test")]


def _unseen(paragraphs: list[str], seen: set[str]) -> list[str]:
    fresh = []
    for paragraph in paragraphs:
        words = " ".join(paragraph.split())  # quoted sections are indented differently
        if words and words not in seen:
            seen.add(words)
            fresh.append(paragraph)
    return fresh
