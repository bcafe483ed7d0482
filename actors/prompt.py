"""The prompt of the paper (Table 1), rendered by the chat template of the model and encoded by its tokenizer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.thinking import FAMILIES, fit_thought
from curriculum.errors import UserError, first_line, library_words

TEMPLATE = (
    "Please read the following text and answer the question below.\n\n"
    "<text>\n{context}\n</text>\n\n"
    "{question}\n\n"
    'Format your response as follows: "Therefore, the answer is (insert answer here)".'
)
"""QwenLong-L1 paper, Table 1."""
_THINKING_TAGS = {tag for pair in FAMILIES.values() for tag in pair}
_PROBE = "probe"
_ROUND_TRIP = "In 2010 the firm  signed:\n\n\tcafé, 東京 (3.5 %) . It 's done !"
"""Text in which careless tokenizers lose or gain something; composed characters, since some tokenizers compose."""


def fill_template(context: str, question: str) -> str:
    """Return the user message that asks `question` about `context`; braces in either are plain text."""
    before, _, rest = TEMPLATE.partition("{context}")
    middle, _, after = rest.partition("{question}")
    return before + context + middle + question + after


class ChatPrompt:
    """Encoder of documents, questions and messages; implements `curriculum.prompts.PromptEncoder`.

    Text that comes from data never produces a token that steers: every special token, token of the chat template, stop
    token and thinking tag in a document, a question or a message is broken by a space after its first character.
    Other added tokens (`<table>`, a line break) are text. Earlier turns of the assistant keep their thinking tags,
    which chat templates look for.
    """

    def __init__(self, tokenizer: Any, *, template_arguments: Mapping[str, Any] | None = None) -> None:
        """Take a Hugging Face tokenizer, and arguments of its chat template such as `enable_thinking`.

        Raises:
            UserError: the tokenizer has no chat template, one that cannot be rendered, or no end-of-sequence token.
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
        self._template_arguments = dict(template_arguments or {})
        try:
            self._generation_prompt = self._written_behind("user", add_generation_prompt=True)
            self._end_of_turn_id = self._find_end_of_turn()
        except Exception as error:  # chat templates raise types of their own
            raise UserError(
                f"model {name!r}: its chat template cannot be rendered ({first_line(error)}); mend `chat_template` in "
                "its folder"
            ) from error
        steering = _steering_tokens(tokenizer, self.stop_token_ids)
        self._steering = _any_of(steering)
        self._steering_of_assistant = _any_of(steering - _THINKING_TAGS)

    def is_of(self, tokenizer: Any) -> bool:
        """Return whether another tokenizer has the same tokens and chat template as that of this prompt."""
        own = self._tokenizer
        return own.get_vocab() == tokenizer.get_vocab() and own.chat_template == tokenizer.chat_template

    def neutralise(self, text: str) -> str:
        """Return the text with every steering token broken: `<|im_end|>` becomes `< |im_end|>`."""
        return _broken(text, self._steering)

    def encode(self, context: str, question: str) -> NDArray[np.int32]:
        """Return [P] the token ids of the chat prompt that asks `question` about `context`."""
        content = self.fill_template(context, question)
        return self._encode_conversation([{"role": "user", "content": content}])

    def fill_template(self, context: str, question: str) -> str:
        """Return the user message that asks `question` about `context`, both neutralised; the template is not."""
        return fill_template(self.neutralise(context), self.neutralise(question))

    def encode_messages(self, messages: Sequence[Mapping[str, str]]) -> NDArray[np.int32]:
        """Return [P] the token ids of a conversation, up to where the turn of the assistant begins."""
        return self._encode_conversation(
            [
                {
                    "role": message["role"],
                    "content": _broken(
                        message["content"],
                        self._steering_of_assistant if message["role"] == "assistant" else self._steering,
                    ),
                }
                for message in messages
            ]
        )

    def encode_response(self, text: str) -> NDArray[np.int32]:
        """Return [R] the token ids of an answer as the model has to write it behind a prompt.

        An opening thinking tag that the chat template writes is left out, one that it does not write is there, and the
        answer ends with the end of turn of the template, once.

        Raises:
            ValueError: thinking and chat template cannot be fitted together; see `fit_thought`.
        """
        ids = self._ids(fit_thought(text, self._generation_prompt)).tolist()
        return np.asarray([*self._without_stop(ids), self._end_of_turn_id], dtype=np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of a response, with thinking tags, without the tokens that ended it."""
        return _decoded(self._tokenizer, self._without_stop(ids))

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer: the template's end of turn, end of sequence, padding."""
        ids = {self._end_of_turn_id, self._tokenizer.eos_token_id, self._tokenizer.pad_token_id} - {None}
        return tuple(sorted(ids))

    def truncate_middle(self, context: str, question: str, max_tokens: int) -> str:
        """Cut the middle out of a document so that the whole prompt has at most `max_tokens` tokens.

        Head and tail keep the same number of tokens, as in the paper's evaluation code, and every kept character is
        one of the document.

        Raises:
            ValueError: the prompt is too long even with an empty document, or the tokenizer cannot tell where its
                tokens lie in a text.
        """
        return self.cut_middle(context, lambda text: self.encode(text, question), max_tokens)

    def cut_middle(self, context: str, encode: Callable[[str], NDArray[np.int32]], max_tokens: int) -> str:
        """Cut the middle out of a document so that the prompt that `encode` makes of it has at most `max_tokens`.

        Raises:
            ValueError: as `truncate_middle`.
        """
        room = max_tokens - len(encode(""))
        if room <= 0:
            raise ValueError(f"the prompt without its document already exceeds {max_tokens} tokens; raise the limit")
        spans = self._spans(context)
        while True:
            keep = min(room, len(spans))
            cut = context if keep == len(spans) else _head_and_tail(context, spans, keep)
            excess = len(encode(cut)) - max_tokens
            if excess <= 0:
                return cut
            if keep == 0:
                raise ValueError(f"the prompt cannot be cut to {max_tokens} tokens; raise the limit")
            room = max(0, keep - excess)

    def _spans(self, text: str) -> Sequence[tuple[int, int]]:
        """Return where each token lies in a text, in characters; tokens of parts of one character lie at all of it."""
        if not getattr(self._tokenizer, "is_fast", True):
            raise ValueError("the tokenizer does not tell where its tokens lie in a text; drop what is too long")
        return self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]

    def _encode_conversation(self, messages: Sequence[Mapping[str, str]]) -> NDArray[np.int32]:
        return self._ids(self._rendered(messages, add_generation_prompt=True))

    def _rendered(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool) -> str:
        return self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt, **self._template_arguments
        )

    def _written_behind(self, role: str, *, add_generation_prompt: bool) -> str:
        """Return what the chat template writes behind the content of the last message of a role."""
        roles = ("user", "assistant") if role == "assistant" else ("user",)
        messages = [{"role": name, "content": _PROBE} for name in roles]
        return self._rendered(messages, add_generation_prompt=add_generation_prompt).rpartition(_PROBE)[2]

    def _find_end_of_turn(self) -> int:
        """Return the token with which the template ends a turn of the assistant; end of sequence where it has none."""
        behind = self._written_behind("assistant", add_generation_prompt=False).lstrip()
        tokens = {token.content: index for index, token in self._tokenizer.added_tokens_decoder.items()}
        found = [token for token in tokens if token.strip() and behind.startswith(token)]
        return tokens[max(found, key=len)] if found else self._tokenizer.eos_token_id

    def _without_stop(self, ids: Sequence[int]) -> list[int]:
        stop, end = self.stop_token_ids, len(ids)
        while end and ids[end - 1] in stop:
            end -= 1
        return list(ids[:end])

    def _ids(self, text: str) -> NDArray[np.int32]:
        return np.asarray(self._tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int32)


def load_tokenizer(path: str, *, trust_remote_code: bool = False) -> Any:
    """Load the tokenizer of a model folder or hub id.

    Raises:
        UserError: no tokenizer can be loaded there, or it changes text.
    """
    from transformers import AutoTokenizer

    loader: Any = AutoTokenizer
    try:
        tokenizer = loader.from_pretrained(path, trust_remote_code=trust_remote_code)
        _check_round_trip(tokenizer, path)
    except UserError:
        raise
    except Exception as error:  # a tokenizer file that is damaged fails in any way
        raise UserError(
            f"model {path!r}: no tokenizer can be loaded there ({library_words(error)}); check the name, the network, "
            "and its tokenizer files"
        ) from error
    return tokenizer


def _check_round_trip(tokenizer: Any, path: str) -> None:
    """Check that encoding and decoding give back a fixed text.

    Raises:
        UserError: they do not.
    """
    text = _ROUND_TRIP + (tokenizer.eos_token or "")
    found = _decoded(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"])
    if found != text:
        raise UserError(
            f"model {path!r}: its tokenizer changes text, {text!r} comes back as {found!r}; check that tokenizer_class "
            "in tokenizer_config.json is that of tokenizer.json (PreTrainedTokenizerFast takes it as it is)"
        )


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    return tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _steering_tokens(tokenizer: Any, stop_token_ids: Sequence[int]) -> set[str]:
    """Return the tokens that documents must not contain: special, of the template, of the stop set, thinking tags."""
    return {
        token.content
        for index, token in tokenizer.added_tokens_decoder.items()
        if token.content.strip()
        and (
            token.special
            or index in stop_token_ids
            or token.content in tokenizer.chat_template
            or token.content in _THINKING_TAGS
        )
    }


def _any_of(tokens: set[str]) -> re.Pattern[str] | None:
    longest_first = sorted(tokens, key=lambda token: (-len(token), token))
    return re.compile("|".join(re.escape(token) for token in longest_first)) if tokens else None


def _broken(text: str, tokens: re.Pattern[str] | None) -> str:
    return text if tokens is None else tokens.sub(lambda match: match.group()[0] + " " + match.group()[1:], text)


def _head_and_tail(text: str, spans: Sequence[tuple[int, int]], keep: int) -> str:
    num_head, num_tail = keep - keep // 2, keep // 2
    head_end = spans[num_head - 1][1] if num_head else 0
    tail_start = spans[len(spans) - num_tail][0] if num_tail else len(text)
    return text[:head_end] + "\n" + text[max(head_end, tail_start) :]
