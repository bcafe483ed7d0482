"""A tokenizer of words and an engine that writes down what it was asked."""

from __future__ import annotations

import asyncio
import re
from functools import partial

import numpy as np
import pytest
from tokenizers import AddedToken

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

    @property
    def added_tokens_decoder(self):
        return {index: AddedToken(word, special=index < 2) for index, word in enumerate(self._words[:4])}

    def apply_chat_template(self, messages, *, tokenize, add_generation_prompt):
        assert not tokenize
        turns = " ".join(f"{message['role']}: {message['content']} <end>" for message in messages)
        return f"{turns} assistant:" if add_generation_prompt else turns

    def __call__(self, text, *, add_special_tokens, return_offsets_mapping=False):
        assert not add_special_tokens
        found = list(re.finditer(r"</?\w+>|\n|[^\s<]+|<", text))
        ids = {"input_ids": [self._id(match.group()) for match in found]}
        return {**ids, "offset_mapping": [match.span() for match in found]} if return_offsets_mapping else ids

    def decode(self, ids, *, skip_special_tokens, clean_up_tokenization_spaces):
        assert not skip_special_tokens
        assert not clean_up_tokenization_spaces
        return " ".join(self._words[index] for index in ids)

    def _id(self, word):
        if word not in self._words:
            self._words.append(word)
        return self._words.index(word)


# Chat templates with the behaviours of the families: what they write, drop and end turns with.
QWEN_TURNS = (
    "{%- if messages[0].role != 'system' -%}{{- '<|im_start|>system\nBe helpful.<|im_end|>\n' -}}{%- endif -%}"
    "{%- for m in messages -%}"
    "{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
QWEN3_TURNS = (
    "{%- for m in messages -%}"
    "{%- set text = m.content.split('</think>')[-1].lstrip('\n') if m.role == 'assistant' and not loop.last"
    " else m.content -%}"
    "{{- '<|im_start|>' + m.role + '\n' + text + '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
LLAMA_TURNS = (
    "{{- '<|begin_of_text|>' -}}"
    "{%- for m in messages -%}"
    "{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}{%- endif -%}"
)
GEMMA_TURNS = (
    "{{- '<bos>' -}}"
    "{%- for m in messages -%}"
    "{%- set role = 'model' if m.role == 'assistant' else m.role -%}"
    "{{- '<start_of_turn>' + role + '\n' + m.content | trim + '<end_of_turn>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<start_of_turn>model\n' -}}{%- endif -%}"
)
MISTRAL_TURNS = (
    "{{- '<s>' -}}"
    "{%- for m in messages -%}"
    "{%- if m.role == 'assistant' -%}{{- ' ' + m.content + '</s>' -}}"
    "{%- else -%}{{- '[INST] ' + m.content + ' [/INST]' -}}{%- endif -%}"
    "{%- endfor -%}"
)
R1_TURNS = (
    "{{- '<｜begin▁of▁sentence｜>' -}}"
    "{%- for m in messages -%}"
    "{%- if m.role == 'assistant' -%}"
    "{{- '<｜Assistant｜>' + m.content.split('</think>')[-1] + '<｜end▁of▁sentence｜>' -}}"
    "{%- else -%}{{- '<｜User｜>' + m.content -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<｜Assistant｜><think>\n' -}}{%- endif -%}"
)
FAMILIES = {
    "qwen2.5": (QWEN_TURNS, "<|im_end|>", ["<|im_start|>"], ["<tool_call>"]),
    "qwen3": (QWEN3_TURNS, "<|im_end|>", ["<|im_start|>"], ["<think>", "</think>"]),
    "llama3": (
        LLAMA_TURNS,
        "<|end_of_text|>",
        ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        [],
    ),
    "gemma3": (GEMMA_TURNS, "<eos>", ["<bos>", "<start_of_turn>", "<end_of_turn>"], ["\n", "\n\n", "<table>", "<td>"]),
    "mistral": (MISTRAL_TURNS, "</s>", ["<s>", "[INST]", "[/INST]"], []),
    "r1": (
        R1_TURNS,
        "<｜end▁of▁sentence｜>",
        ["<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"],
        ["<think>", "</think>"],
    ),
}
"""By family: chat template, end-of-sequence token, other special tokens, added tokens that are not special."""


def family_tokenizer(name):
    """A tokenizer of bytes with the template and the added tokens of a family."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    template, eos, special, added = FAMILIES[name]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=eos, pad_token="<pad>", additional_special_tokens=special
    )
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="session")
def families():
    """By name, what makes the tokenizer."""
    return {name: partial(family_tokenizer, name) for name in FAMILIES}


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
