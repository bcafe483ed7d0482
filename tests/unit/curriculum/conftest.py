"""Hand-made tasks, a clock that is set by hand, and an encoder with one token per word."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from curriculum.task import Task

TaskMaker = Callable[..., list[Task]]


@pytest.fixture
def make_tasks() -> TaskMaker:
    """`make_tasks(2, 1)`: tasks t0-0 and t0-1 of phase 0 with 10 and 11 tokens, t1-0 of phase 1 with 20 tokens."""

    def make(*counts: int) -> list[Task]:
        return [
            Task(
                task_id=f"t{phase}-{index}",
                data_source="musique",
                question="who?",
                answers=("alice",),
                prompt_ids=np.zeros(10 * (phase + 1) + index, dtype=np.int32),
                phase=phase,
            )
            for phase, count in enumerate(counts)
            for index in range(count)
        ]

    return make


class HandClock:
    """A monotonic clock that moves only when told."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


class WordEncoder:
    """One token per word of document and question, two for the template; refuses the role `tool`."""

    def encode(self, context: str, question: str) -> np.ndarray:
        return np.arange(len(context.split()) + len(question.split()) + 2, dtype=np.int32)

    def encode_messages(self, messages: Sequence[Mapping[str, str]]) -> np.ndarray:
        if any(message["role"] == "tool" for message in messages):
            raise RuntimeError("unknown role tool")
        return np.arange(sum(len(message["content"].split()) + 2 for message in messages), dtype=np.int32)

    def encode_response(self, text: str) -> np.ndarray:
        return np.arange(len(text.split()) + 1, dtype=np.int32)

    def truncate_middle(self, context: str, question: str, max_tokens: int) -> str:
        return self.cut_middle(context, lambda text: self.encode(text, question), max_tokens)

    def cut_middle(self, context: str, encode: Callable[[str], np.ndarray], max_tokens: int) -> str:
        room = max_tokens - encode("").size
        if room <= 0:
            raise ValueError("the prompt without its document is too long")
        words = context.split()
        return " ".join(words[: room - room // 2] + words[len(words) - room // 2 :])


@pytest.fixture
def encoder() -> WordEncoder:
    return WordEncoder()
