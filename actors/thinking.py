"""The tags in which models think, and how a written thought fits behind what a chat template has opened."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

FAMILIES: Final[Mapping[str, tuple[str, str]]] = {
    "think": ("<think>", "</think>"),
    "thinking": ("<thinking>", "</thinking>"),
    "thought": ("<thought>", "</thought>"),
    "reasoning": ("<reasoning>", "</reasoning>"),
    "mistral": ("[THINK]", "[/THINK]"),
    "seed": ("<seed:think>", "</seed:think>"),
    "kimi": ("◁think▷", "◁/think▷"),
    "harmony": ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
}
"""Opening and closing tag by name of the family."""


def whole_thought(response: str) -> str:
    """Return the normal form of a response: a thought that ends has its opening tag, as in `<think>…</think>answer`.

    A response whose opening tag was written by the prompt gets it back; any other comes back as it is.
    """
    pair = _pair_of(response)
    return response if pair is None or response.lstrip().startswith(pair[0]) else pair[0] + response


def fit_thought(response: str, generation_prompt: str) -> str:
    """Return what a model has to write of a response after its prompt, so that every tag stands there once.

    Args:
        response: normal form or not; see `whole_thought`.
        generation_prompt: what the chat template writes behind the last message.

    Raises:
        ValueError: the two cannot be fitted together.
    """
    prompt, response = generation_prompt.rstrip(), whole_thought(response)
    pair, opened = _pair_of(response), _pair_opened_by(prompt)
    if pair is None:
        if opened is not None:
            raise ValueError(f"the chat template opens a thought with {opened[0]} and the response has none")
        return response
    body = response.lstrip().removeprefix(pair[0])
    if pair[1] not in body:
        raise ValueError(f"the thought of the response opens with {pair[0]} and does not end with {pair[1]}")
    if any(prompt.endswith(closing) for _, closing in FAMILIES.values()):
        raise ValueError("the chat template ends the thought before the response, which has one")
    if opened is None:
        return response
    thought, _, answer = body.rpartition(pair[1])
    body = thought + opened[1] + answer
    return body.lstrip() if prompt != generation_prompt else body


def _pair_of(response: str) -> tuple[str, str] | None:
    """Return the tags of a response: those it begins with, else those that end a thought; None without a thought."""
    begins = response.lstrip()
    pairs = FAMILIES.values()
    opened = next((pair for pair in pairs if begins.startswith(pair[0])), None)
    return opened or next((pair for pair in pairs if pair[1] in response and pair[0] not in response), None)


def _pair_opened_by(prompt: str) -> tuple[str, str] | None:
    return next((pair for pair in FAMILIES.values() if prompt.endswith(pair[0])), None)
