"""What a client of the OpenAI API asks a server, and what the answers must be."""

import itertools
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .checks import Outcome
from .server import Server, wait_until

START = "The lattice is a regular arrangement of points, and"
TOKENS = 24
TOPICS = ("water", "bread", "the moon", "a bicycle", "music", "the sea", "a library", "winter")
PROMPTS = [f"{start} {topic}" for start in ("Here is a story about", "What I know about") for topic in TOPICS]


class Asking:
    """A client and the model that it asks.

    Args:
        server: runs.
        context: tokens that the server takes at most.
        exact: whether the size of a batch does not matter, as in float32.
    """

    def __init__(self, server: Server, context: int, exact: bool) -> None:
        import openai

        self.server, self.context, self.exact = server, context, exact
        self.client = openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", timeout=120, max_retries=0)
        self.bad_request = openai.BadRequestError

    def complete(self, prompt: Any = START, tokens: int = TOKENS, **more: Any) -> Any:
        """A greedy completion, or what `more` makes of it."""
        settings = {"temperature": 0, "max_tokens": tokens, **more}
        return self.client.completions.create(model=self.server.model, prompt=prompt, **settings)

    def text(self, prompt: Any = START, **more: Any) -> str:
        return str(self.complete(prompt, **more).choices[0].text)

    def checks(self, template: bool) -> list[tuple[str, Callable[[], Outcome]]]:
        """All checks of this page, by name, in order.

        Args:
            template: whether the model has a chat template.
        """
        return [
            ("a completion", self.single),
            ("a chat", lambda: self.chat(template)),
            ("16 requests at once", self.at_once),
            ("streaming", self.streaming),
            ("a stop string", self.stop),
            ("log-probabilities", self.logprobs),
            ("a prompt beyond the context", self.too_long),
            ("an abort in the middle", self.abort),
        ]

    def single(self) -> Outcome:
        answer = self.complete()
        text, used = answer.choices[0].text, answer.usage.completion_tokens
        return used == TOKENS and bool(text.strip()), f"{used} tokens"

    def chat(self, template: bool) -> Outcome:
        messages: Any = [{"role": "user", "content": "Name a colour."}]
        try:
            answer = self.client.chat.completions.create(
                model=self.server.model, messages=messages, temperature=0, max_tokens=TOKENS
            )
        except self.bad_request as error:
            return not template and "template" in str(error), "refused: the model has no chat template"
        text = answer.choices[0].message.content or ""
        return template and bool(text.strip()), f"{answer.usage.completion_tokens} tokens"

    def at_once(self) -> Outcome:
        """Together as alone: the same texts in float32, the first word in bfloat16: batches change its rounding."""
        alone = [self.text(prompt) for prompt in PROMPTS]
        start = time.monotonic()
        with ThreadPoolExecutor(len(PROMPTS)) as pool:
            together = list(pool.map(self.text, PROMPTS))
        seconds = time.monotonic() - start
        same = sum(one == other for one, other in zip(alone, together, strict=True))
        begun = sum(other.split()[:1] == one.split()[:1] for one, other in zip(alone, together, strict=True))
        enough = same if self.exact else begun
        return enough >= len(
            PROMPTS
        ) - 1, f"{same} of {len(PROMPTS)} texts as alone, {begun} first words, {seconds:.1f} s"

    def streaming(self) -> Outcome:
        pieces = [part.choices[0].text for part in self.complete(stream=True) if part.choices]
        return "".join(pieces) == self.text() and len(pieces) > 2, f"{len(pieces)} pieces, the text of one answer"

    def stop(self) -> Outcome:
        whole = self.text()
        word = stop_word(whole)
        choice = self.complete(stop=[word]).choices[0]
        passed = choice.text == whole.partition(word)[0] and choice.finish_reason == "stop"
        return passed, f"ends before {word!r} after {len(choice.text)} of {len(whole)} characters"

    def logprobs(self) -> Outcome:
        # By number, since several tokens that are parts of a character have the same text.
        found = self.complete(logprobs=5, extra_body={"return_tokens_as_token_ids": True}).choices[0].logprobs
        problem = problem_of(found.token_logprobs, found.top_logprobs)
        return problem is None and len(found.token_logprobs) == TOKENS, problem or f"{TOKENS} × 5"

    def too_long(self) -> Outcome:
        try:
            self.complete([5] * (self.context + 10))
        except self.bad_request as error:
            named = str(self.context) in str(error)
            return named and self.server.healthy(), f"refused with {error.status_code}, naming {self.context} tokens"
        return False, "was not refused"

    def abort(self) -> Outcome:
        running = "vllm:num_requests_running"
        with self.complete(tokens=self.context - 40, stream=True, extra_body={"ignore_eos": True}) as stream:
            read = len(list(itertools.islice(stream, 3)))
            before = self.server.metric(running)
        start = time.monotonic()
        goes_on = self.text() != ""  # the figure is that of the last step, so one is made
        ended = wait_until(lambda: self.server.metric(running) == 0, 5)
        seconds = time.monotonic() - start
        return read == 3 and before >= 1 and ended and goes_on, f"the next works, none runs after {seconds:.1f} s"


def stop_word(text: str, size: int = 5) -> str:
    """A piece from the second half of a text that does not stand before.

    Raises:
        ValueError: there is none.
    """
    for start in range(len(text) // 2, len(text) - size):
        if text.index(text[start : start + size]) == start:
            return text[start : start + size]
    raise ValueError(f"nothing in the second half of {text!r} is new")


def problem_of(chosen: Sequence[float], best: Sequence[dict[str, float]]) -> str | None:
    """What is wrong with the log-probabilities of a greedy answer, or None.

    Args:
        chosen: of each token of the answer.
        best: of the likeliest tokens at each place, by token.
    """
    for place, (own, others) in enumerate(zip(chosen, best, strict=True)):
        if not others or abs(max(others.values()) - own) > 1e-6:
            return f"token {place} is not the likeliest"
        if sum(map(math.exp, others.values())) > 1 + 1e-4:
            return f"probabilities at token {place} sum to more than 1"
    return None
