"""The prompt of an item: the paper's template, with the middle of the document cut out where it is too long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from evaluation.record import Item


class PromptEncoder(Protocol):
    """A tokenizer with its chat template, as far as prompts need it; `actors.prompt.ChatPrompt` is one."""

    def encode(self, context: str, question: str) -> NDArray[np.int32]:
        """Return the [P] token ids of the chat prompt."""
        ...

    def truncate_middle(self, context: str, question: str, max_tokens: int) -> str:
        """Cut the middle of the document so that the prompt has at most `max_tokens`.

        Raises:
            ValueError: The question alone is too long.
        """
        ...

    def fill_template(self, context: str, question: str) -> str:
        """Return the user message; control tokens that the two hold are broken."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prompt:
    """A prompt both as text, for an endpoint, and as tokens, for an engine."""

    text: str
    """The user message; control tokens that the document holds are broken."""
    token_ids: NDArray[np.int32]
    """[P] token ids of the chat prompt."""
    document_cut: bool
    """Whether the middle of the document is missing."""


def make_prompt(item: Item, encoder: PromptEncoder, *, max_tokens: int) -> Prompt:
    """Make the prompt of an item, at most `max_tokens` long.

    Raises:
        ValueError: The question alone is too long.
    """
    context = item.context
    token_ids = encoder.encode(context, item.question)
    is_cut = len(token_ids) > max_tokens
    if is_cut:
        context = encoder.truncate_middle(context, item.question, max_tokens)
        token_ids = encoder.encode(context, item.question)
    return Prompt(text=encoder.fill_template(context, item.question), token_ids=token_ids, document_cut=is_cut)
