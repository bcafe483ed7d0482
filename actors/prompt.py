"""The prompt of the paper (Table 1), rendered by the chat template of the model and encoded by its tokenizer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curriculum.errors import UserError, library_words

TEMPLATE = (
    "Please read the following text and answer the question below.\n\n"
    "<text>\n{context}\n</text>\n\n"
    "{question}\n\n"
    'Format your response as follows: "Therefore, the answer is (insert answer here)".'
)
"""QwenLong-L1 paper, Table 1."""


def fill_template(context: str, question: str) -> str:
    """Return the user message that asks `question` about `context`; braces in either are plain text."""
    before, _, rest = TEMPLATE.partition("{context}")
    middle, _, after = rest.partition("{question}")
    return before + context + middle + question + after


class ChatPrompt:
    """Encoder of documents, questions and messages; implements `curriculum.dataset.PromptEncoder`.

    Text that comes from data never produces a control token: every added token of the tokenizer (`<|im_end|>`,
    `</think>`, ...) that appears in a document, a question or a message is broken by a space after its first character.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Take a Hugging Face tokenizer.

        Raises:
            UserError: the tokenizer has no chat template or no end-of-sequence token.
        """
        name = getattr(tokenizer, "name_or_path", "")
        if not tokenizer.chat_template:
            raise UserError(
                f"model {name!r}: its tokenizer has no chat template; use an instruction-tuned model "
                "or add a `chat_template` to tokenizer_config.json"
            )
        if tokenizer.eos_token_id is None:
            raise UserError(f"model {name!r}: its tokenizer has no eos_token; set one in tokenizer_config.json")
        self._tokenizer = tokenizer
        control = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)
        self._control = re.compile("|".join(re.escape(token) for token in control)) if control else None

    def neutralise(self, text: str) -> str:
        """Return the text with every control token broken: `<|im_end|>` becomes `< |im_end|>`."""
        if self._control is None:
            return text
        return self._control.sub(lambda match: match.group()[0] + " " + match.group()[1:], text)

    def encode(self, context: str, question: str) -> NDArray[np.int32]:
        """Return [P] the token ids of the chat prompt that asks `question` about `context`."""
        return self.encode_messages([{"role": "user", "content": fill_template(context, question)}])

    def encode_messages(self, messages: Sequence[Mapping[str, str]]) -> NDArray[np.int32]:
        """Return [P] the token ids of a conversation, up to where the turn of the assistant begins."""
        clean = [{"role": message["role"], "content": self.neutralise(message["content"])} for message in messages]
        text = self._tokenizer.apply_chat_template(clean, tokenize=False, add_generation_prompt=True)
        return self._ids(text)

    def encode_response(self, text: str) -> NDArray[np.int32]:
        """Return [R] the token ids of an answer with its end-of-turn token; thinking tags stay control tokens."""
        return np.append(self._ids(text), np.int32(self._tokenizer.eos_token_id))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of a response, with thinking tags, without the end-of-turn token."""
        end = len(ids) - 1 if ids and ids[-1] in self.stop_token_ids else len(ids)
        return self._tokenizer.decode(list(ids[:end]), skip_special_tokens=False)

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer: the tokenizer's end-of-sequence token and its padding token."""
        ids = {self._tokenizer.eos_token_id, self._tokenizer.pad_token_id} - {None}
        return tuple(sorted(ids))

    def truncate_middle(self, context: str, question: str, max_tokens: int) -> str:
        """Cut the middle out of a document so that the whole prompt has at most `max_tokens` tokens.

        Head and tail keep the same number of tokens, as in the paper's evaluation code.

        Raises:
            ValueError: the prompt is too long even with an empty document.
        """
        room = max_tokens - len(self.encode("", question))
        if room <= 0:
            raise ValueError(f"the prompt without its document already exceeds {max_tokens} tokens; raise the limit")
        ids = self._ids(context)
        while True:
            keep = min(room, len(ids))
            cut = context if keep == len(ids) else self._head_and_tail(ids, keep)
            excess = len(self.encode(cut, question)) - max_tokens
            if excess <= 0:
                return cut
            if keep == 0:
                raise ValueError(f"the prompt cannot be cut to {max_tokens} tokens; raise the limit")
            room = max(0, keep - excess)

    def _head_and_tail(self, ids: NDArray[np.int32], keep: int) -> str:
        head, tail = ids[: keep - keep // 2], ids[len(ids) - keep // 2 :]
        return self._tokenizer.decode(head.tolist()) + "\n" + self._tokenizer.decode(tail.tolist())

    def _ids(self, text: str) -> NDArray[np.int32]:
        return np.asarray(self._tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int32)


def load_tokenizer(path: str, *, trust_remote_code: bool = False) -> Any:
    """Load the tokenizer of a model folder or hub id.

    Raises:
        UserError: no tokenizer can be loaded there.
    """
    from transformers import AutoTokenizer

    loader: Any = AutoTokenizer
    try:
        return loader.from_pretrained(path, trust_remote_code=trust_remote_code)
    except Exception as error:  # a tokenizer file that is damaged fails in any way
        raise UserError(
            f"model {path!r}: no tokenizer can be loaded there ({library_words(error)}); check the name, the network, "
            "and its tokenizer files"
        ) from error
