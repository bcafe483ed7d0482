"""Hand-made items, an encoder with one token per word, and a generator that answers from a table."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from actors.prompt import fill_template
from evaluation.generator import Completion, GeneratorDown
from evaluation.prompts import Prompt
from evaluation.record import Answer, Item, Outcome
from reward.chat_endpoint import NoReplyError


class WordEncoder:
    """One token per word of document and question."""

    def encode(self, context: str, question: str) -> np.ndarray:
        return np.arange(len(context.split()) + len(question.split()), dtype=np.int32)

    def truncate_middle(self, context: str, question: str, max_tokens: int) -> str:
        room = max_tokens - len(question.split())
        if room <= 0:
            raise ValueError(f"the question alone exceeds {max_tokens} tokens")
        words = context.split()
        return " ".join(words[: room - room // 2] + words[len(words) - room // 2 :])

    def fill_template(self, context: str, question: str) -> str:
        return fill_template(context, question).replace("<|im_end|>", "< |im_end|>")


class TableGenerator:
    """Answers prompts that contain a key of the table; an exception in the table is raised."""

    def __init__(self, table: Mapping[str, str | Exception]) -> None:
        self._table = table
        self.asked: list[tuple[str, int]] = []

    async def generate(self, prompt: Prompt, *, seed: int) -> Completion:
        found = next(value for key, value in self._table.items() if key in prompt.text)
        self.asked.append((prompt.text, seed))
        if isinstance(found, Exception):
            raise found
        return Completion(text=found, num_tokens=len(found.split()), is_truncated=found.endswith("..."))

    async def close(self) -> None:
        pass


@pytest.fixture
def encoder() -> WordEncoder:
    return WordEncoder()


@pytest.fixture
def table_generator() -> Callable[[Mapping[str, str | Exception]], TableGenerator]:
    return TableGenerator


@pytest.fixture
def refusal() -> NoReplyError:
    return NoReplyError("HTTP 400")


@pytest.fixture
def outage() -> GeneratorDown:
    return GeneratorDown("the endpoint is down")


@pytest.fixture
def make_item() -> Callable[..., Item]:
    def make(item_id: str = "a", **values) -> Item:
        defaults = {
            "benchmark": "musique",
            "data_source": "musique",
            "context": "Vienna is the capital of Austria .",
            "question": f"what is the capital ? {item_id}",
            "answers": ("Vienna",),
        }
        return Item(item_id=item_id, **{**defaults, **values})

    return make


@pytest.fixture
def make_answer() -> Callable[..., Answer]:
    def make(item_id: str = "a", sample: int = 0, text: str = "the answer is Vienna", **values) -> Answer:
        defaults = {
            "benchmark": "musique",
            "seed": 1,
            "outcome": Outcome.COMPLETE,
            "prompt_tokens": 10,
            "document_cut": False,
            "response_tokens": 4,
        }
        return Answer(item_id=item_id, sample=sample, text=text, **{**defaults, **values})

    return make
