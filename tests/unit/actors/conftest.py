"""A tokenizer of words and an engine that writes down what it was asked."""

from __future__ import annotations

import asyncio
import re

import numpy as np
import pytest

from actors.rollout import Sample
from curriculum.task import Task, TaskLease


class WordTokenizer:
    """One token per word, per newline and per control token; ids grow with every new word."""

    name_or_path = "words"
    chat_template = "user: {} assistant:"
    eos_token_id = 0
    pad_token_id = 1

    def __init__(self) -> None:
        self._words = ["<end>", "<pad>", "<think>", "</think>"]

    def get_added_vocab(self):
        return {word: index for index, word in enumerate(self._words[:4])}

    def apply_chat_template(self, messages, *, tokenize, add_generation_prompt):
        assert add_generation_prompt
        assert not tokenize
        turns = " ".join(f"{message['role']}: {message['content']} <end>" for message in messages)
        return f"{turns} assistant:"

    def __call__(self, text, *, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": [self._id(word) for word in re.findall(r"</?\w+>|\n|[^\s<]+|<", text)]}

    def decode(self, ids, skip_special_tokens=False):
        return " ".join(self._words[index] for index in ids)

    def _id(self, word):
        if word not in self._words:
            self._words.append(word)
        return self._words.index(word)


class FakeEngine:
    """Returns `samples`; `requests` holds (prompt ids, sampling, seed), `timeouts_s` their timeouts.

    With a gate, answers come when it opens; what waits there is in `num_running`.
    """

    policy_version = 3

    def __init__(self, samples: list[Sample], gate: asyncio.Event | None = None) -> None:
        self.samples = samples
        self.gate = gate
        self.requests = []
        self.timeouts_s = []
        self.num_running = 0

    async def sample(self, prompt_ids, sampling, *, seed, timeout_s=None, on_finished=None):
        self.requests.append((prompt_ids, sampling, seed))
        self.timeouts_s.append(timeout_s)
        self.num_running += sampling.num_samples
        try:
            if self.gate:
                await self.gate.wait()
            for sample in self.samples:
                if on_finished and sample.finish_reason != "deadline":
                    on_finished(len(sample.token_ids))
            return self.samples
        finally:
            self.num_running -= sampling.num_samples


@pytest.fixture
def tokenizer():
    return WordTokenizer()


@pytest.fixture
def fake_engine():
    return FakeEngine


@pytest.fixture
def task():
    return Task(
        task_id="t1",
        data_source="test",
        question="who?",
        answers=("alice",),
        prompt_ids=np.array([4, 5, 6], np.int32),
        phase=0,
    )


@pytest.fixture
def lease(task):
    return TaskLease(lease_id=9, task_id=task.task_id, attempt=2, replayed=True, phase=1)
