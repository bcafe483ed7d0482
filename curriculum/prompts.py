"""The token ids of prompts: of questions about documents, whole or cut to fit, also about another document."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from curriculum.cells import Message
from curriculum.errors import library_words
from curriculum.layout import QuestionItem
from curriculum.rejects import RejectReason, RowError


class PromptEncoder(Protocol):
    """Template, chat template and tokenizer; implemented downstream, in `actors.prompt`."""

    def encode(self, context: str, question: str) -> NDArray[np.int32]:
        """Return the [P] token ids of the chat prompt."""
        ...

    def encode_messages(self, messages: Sequence[Mapping[str, str]]) -> NDArray[np.int32]:
        """Return the [P] token ids of a conversation, ready for the response."""
        ...

    def encode_response(self, text: str) -> NDArray[np.int32]:
        """Return the [R] token ids of a response, end-of-turn token included."""
        ...

    def truncate_middle(self, context: str, question: str, max_tokens: int) -> str:
        """Cut the middle of the document so that the prompt has at most `max_tokens`.

        Raises:
            ValueError: The question alone is too long.
        """
        ...

    def cut_middle(self, context: str, encode: Callable[[str], NDArray[np.int32]], max_tokens: int) -> str:
        """Cut the middle of a document so that the [P] token ids that `encode` makes of it are at most `max_tokens`.

        Raises:
            ValueError: They are more without the document.
        """
        ...


def with_document(item: QuestionItem, document: str) -> QuestionItem:
    """Return an item with another document, or with none ("").

    Raises:
        RowError: It has a prompt of its own, in which no document is found.
    """
    if item.messages and _message_with_document(item) is None:
        detail = "no document is found in its prompt; say where it lies with data.markers.context"
        raise RowError(RejectReason.BAD_PROMPT, detail)
    return replace(item, context=document, messages=_messages(item, document))


def fitting_prompt(
    item: QuestionItem, encoder: PromptEncoder, max_tokens: int, over_long: Literal["drop", "truncate_middle"]
) -> NDArray[np.int32]:
    """Return [P] the token ids of the prompt of an item, P <= `max_tokens`.

    Args:
        item: the question.
        encoder: makes token ids.
        max_tokens: the limit.
        over_long: `drop` refuses a longer prompt, `truncate_middle` cuts its document.

    Raises:
        RowError: it is refused, cannot be cut, or cannot be encoded.
    """
    prompt_ids = _prompt_ids(item, encoder, item.context)
    if prompt_ids.size <= max_tokens:
        return prompt_ids
    if over_long == "drop":
        detail = f"{prompt_ids.size} prompt tokens exceed {max_tokens}; truncate it or raise the limit"
        raise RowError(RejectReason.OVER_LONG, detail)
    return _truncated(item, encoder, max_tokens)


def _prompt_ids(item: QuestionItem, encoder: PromptEncoder, context: str) -> NDArray[np.int32]:
    """Return [P] the token ids of the prompt of an item, with another text in the place of its document."""
    if not item.messages:
        return tokens(lambda: encoder.encode(context, item.question))
    return tokens(lambda: encoder.encode_messages([dict(message) for message in _messages(item, context)]))


def _messages(item: QuestionItem, context: str) -> tuple[Message, ...]:
    """Return the messages of an item with another text in the place of its document."""
    index = _message_with_document(item)
    if index is None or context == item.context:
        return item.messages
    content = item.messages[index]["content"].replace(item.context, context, 1)
    return (*item.messages[:index], {**item.messages[index], "content": content}, *item.messages[index + 1 :])


def _message_with_document(item: QuestionItem) -> int | None:
    """Return the position of the last message that holds the document; None where none does."""
    found = [index for index, message in enumerate(item.messages) if item.context in message["content"]]
    return found[-1] if found and item.context else None


def _truncated(item: QuestionItem, encoder: PromptEncoder, max_tokens: int) -> NDArray[np.int32]:
    if item.messages and _message_with_document(item) is None:
        detail = f"the prompt exceeds {max_tokens} tokens, and no document is found in it to cut; give data.markers"
        raise RowError(RejectReason.OVER_LONG, detail + ".context, or drop it")
    try:
        if item.messages:
            cut = encoder.cut_middle(item.context, lambda text: _prompt_ids(item, encoder, text), max_tokens)
        else:
            cut = encoder.truncate_middle(item.context, item.question, max_tokens)
    except ValueError as error:
        raise RowError(RejectReason.OVER_LONG, str(error)) from error
    prompt_ids = _prompt_ids(item, encoder, cut)
    if prompt_ids.size > max_tokens:
        detail = f"{prompt_ids.size} prompt tokens exceed {max_tokens} even after truncation"
        raise RowError(RejectReason.OVER_LONG, detail)
    return prompt_ids


def tokens(encode: Callable[[], NDArray[np.int32]]) -> NDArray[np.int32]:
    """Encode; what template or tokenizer raise about one row becomes a `RowError`."""
    try:
        ids = np.asarray(encode(), dtype=np.int32)
    except Exception as error:  # chat templates raise types of their own, for instance on unknown roles
        detail = f"the chat template refuses it: {library_words(error)}"
        raise RowError(RejectReason.NOT_ENCODABLE, detail) from error
    if ids.size == 0:
        raise RowError(RejectReason.NOT_ENCODABLE, "the tokenizer gives no token")
    return ids
