"""The prompt of the judge and the reading of its verdict; an answer enters as data and cannot forge a verdict."""

from __future__ import annotations

import re
from dataclasses import dataclass

from reward.folding import fold
from reward.score import Verdict
from reward.thinking import text_after_thinking

SYSTEM_PROMPT = (
    "You are an expert in verifying if two answers are the same. Your input is a problem and two answers, Answer 1 and "
    "Answer 2. You need to check if they are equivalent. Your task is to determine if two answers are equivalent, "
    "without attempting to solve the original problem. Compare the answers to verify they represent identical values "
    "or meaning, even when written in different forms or notations. Your output must follow the following format: "
    "1) Provide an explanation for why the answers are equivalent or not. 2) Then provide your final answer in the "
    "form of: [[YES]] or [[NO]]"
)
"""System prompt of the judge, word for word (paper Table 2)."""

MAX_QUESTION_CHARS = 4_000
MAX_ANSWER_CHARS = 1_000
"""Longest answer and longest truth in a judge prompt, in characters; the prompt stays below 8,000 characters."""

_VERDICT = re.compile(r"\[\[\s*([yY][eE][sS]|[nN][oO])\s*\]\]")
_FORGERY = re.compile(
    r"\[\s*\[\s*(?:yes|no)\b|<\|[^|<>]{1,60}\|>|\[/?INST\]|<</?SYS>>|</?(?:think|s|bos|eos|start_of_turn|end_of_turn)>"
    r"|\banswer\s*2\s*:",
    re.IGNORECASE,
)
_FIELD = re.compile(r"\b(answer\s*[12]|problem|system|user|assistant)\s*:", re.IGNORECASE)
_TAG = re.compile(r"<(?=[A-Za-z/|<!])|(?<=[|>])>|◁(?=/?think)")


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeQuestion:
    """One pair of answers for the judge."""

    question: str
    """The question of the record, without document and template; "" where the record has none."""
    answer: str
    """The answer of the policy ("Answer 1")."""
    truth: str
    """One accepted answer ("Answer 2")."""


def judge_messages(question: JudgeQuestion) -> list[dict[str, str]]:
    """Write the chat messages of one question: system and user prompt of the paper (Table 2), fields neutralised."""
    problem = neutralise(question.question, MAX_QUESTION_CHARS)
    answer = neutralise(question.answer, MAX_ANSWER_CHARS)
    truth = neutralise(question.truth, MAX_ANSWER_CHARS)
    user = f"Problem: {problem}\nAnswer 1: {answer}\nAnswer 2: {truth}"
    return [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": user}]


def neutralise(text: str, max_chars: int) -> str:
    """Rewrite a text as one line of data without line breaks, verdicts, field names, tags and chat tokens.

    Square brackets become round ones, so that a judge that quotes the answer does not give a verdict by it; a tag is
    broken by a space and a field name loses its colon. Only the first `max_chars` characters of a text are kept.
    """
    text = " ".join(fold(text[: 2 * max_chars]).split())[:max_chars]
    text = text.replace("[", "(").replace("]", ")").replace("\ufffd", "?")
    return _FIELD.sub(r"\1 -", _TAG.sub(lambda tag: " >" if tag[0] == ">" else tag[0] + " ", text))


def imitates_judge_format(answer: str) -> bool:
    """Return whether an answer contains a verdict, a field of the judge prompt, or chat tokens."""
    return _FORGERY.search(fold(answer)) is not None


def parse_verdict(text: str | None) -> Verdict:
    """Read the verdict in a judge's output: only `[[YES]]` or only `[[NO]]`, any case, inner spaces; else unknown.

    What a judge thinks is no verdict: only the text behind its thought counts, and a thought without an end has none.
    """
    kinds = {verdict.casefold() for verdict in _VERDICT.findall(text_after_thinking(text or "") or "")}
    return Verdict(kinds.pop()) if len(kinds) == 1 else Verdict.UNKNOWN
