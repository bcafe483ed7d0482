"""Generated training rows for the local judge: are two answers of the local task the same?

A pair is equivalent when the answers are equal or a number and its word; everything else is not. Most pairs must be
refused, and many of those are close, because a judge that says yes too often rewards the policy for junk. The prompt
of the judge belongs to `reward.judge_prompt`, downstream of this module, and is passed in.
"""

from __future__ import annotations

import random
import string
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from curriculum.synthetic import (
    FILLER,
    FOODS,
    NAMES,
    NUMBER_WORDS,
    NUMBERS,
    PLACES,
    VALUES,
    WORD_OF_NUMBER,
    same_answer,
)

ANSWERS = (*NAMES, *PLACES, *FOODS, *NUMBERS, *NUMBER_WORDS)
"""Every answer a policy can be asked for, numbers in both forms."""
YES, NO = "[[YES]]", "[[NO]]"

_NUMBER_OF_WORD = {word: number for number, word in WORD_OF_NUMBER.items()}
_CLASSES = (NAMES, PLACES, FOODS, (*NUMBERS, *NUMBER_WORDS))
_YES_SHARE = 0.45
_NUMBER_SHARE = 0.25
_STRANGE_TRUTH_SHARE = 0.1
_OTHER_WORDS = (*FILLER, *VALUES, "the", "who", "what", "is", "answer", "yes", "no", "Notes", "Question")
_MARKS = "?!.,-*%$()"
_CHARACTERS = string.ascii_letters + string.digits + _MARKS
_SEPARATORS = (" ", ", ", " or ", " and ", ". ", " / ", "; ")
_MAX_LONG_WORDS = 150


class JudgePrompt(Protocol):
    """The prompt of the judge; implemented downstream, in `reward.judge_prompt`."""

    def __call__(self, *, question: str, answer: str, truth: str) -> Sequence[Mapping[str, str]]:
        """Return the chat messages that ask the judge about one pair."""
        ...


def generate_judge_pairs(*, num_items: int, seed: int, prompt: JudgePrompt) -> list[dict[str, Any]]:
    """Write judge prompts with their verdicts, for the judge's own SFT; no two rows are alike.

    Returns:
        Rows `{id, messages: [{role, content}, ...], response}` with response "[[YES]]" or "[[NO]]".
    """
    rng = random.Random(f"{seed}/judge")
    pairs: dict[tuple[str, str, str], None] = {}
    while len(pairs) < num_items:
        pairs[draw_pair(rng)] = None
    return [
        {
            "id": f"judge-{i:06d}",
            "messages": list(prompt(question=question, answer=answer, truth=truth)),
            "response": YES if same_answer(answer, truth) else NO,
        }
        for i, (question, answer, truth) in enumerate(pairs)
    ]


def draw_pair(rng: random.Random) -> tuple[str, str, str]:
    """Draw (question, answer, truth); numeric truths are digits or words, so that the judge learns both directions."""
    question = draw_question(rng)
    if rng.random() < _STRANGE_TRUTH_SHARE:
        return _strange_pair(rng, question)
    truth = rng.choice((*NUMBERS, *NUMBER_WORDS) if rng.random() < _NUMBER_SHARE else ANSWERS)
    answer = _equivalent(rng, truth) if rng.random() < _YES_SHARE else _different(rng, truth, question)
    return question, answer, truth


def draw_question(rng: random.Random) -> str:
    """Draw a question of the local task; it need not ask for the truth, since the judge must not depend on it."""
    chain = "" if rng.random() < 0.5 else " follows who"
    return f"Question: {rng.choice(NAMES)}{chain} {rng.choice(tuple(VALUES))} what?"


def draw_junk(rng: random.Random, question: str) -> str:
    """Draw what a policy might say to be accepted: nothing, a letter, the question, other words, a verdict."""
    return rng.choice(
        (
            lambda: "",
            lambda: rng.choice(string.ascii_letters + _MARKS),
            lambda: _letters(rng),
            lambda: question,
            lambda: question.removeprefix("Question: "),
            lambda: " ".join(rng.choices(_OTHER_WORDS, k=rng.randint(1, 5))),
            lambda: rng.choice(("YES", "[[YES]]", "((YES))", "Yes", "yes", "NO", "(insert answer here)", "the same")),
            lambda: "".join(rng.choices(_CHARACTERS + " " * 20, k=rng.randint(50, 400))),
            lambda: " ".join(rng.choices((*ANSWERS, *_OTHER_WORDS), k=rng.randint(20, _MAX_LONG_WORDS))),
        )
    )()


def draw_candidates(rng: random.Random, truth: str) -> str:
    """Draw several answers at once, the right one usually among them: a guess, not an answer."""
    wrong = [answer for answer in ANSWERS if not same_answer(answer, truth)]
    same_kind = [answer for answer in _kind(truth) if not same_answer(answer, truth)]
    picked = rng.sample(rng.choice((wrong, same_kind)), rng.randint(1, 4))
    picked.append(_equivalent(rng, truth) if rng.random() < 0.8 else rng.choice(wrong))
    rng.shuffle(picked)
    if rng.random() < 0.3:
        relations = rng.choices(tuple(VALUES), k=len(picked))
        picked = [f"{rng.choice(NAMES)} {relation} {value}" for relation, value in zip(relations, picked, strict=True)]
    return rng.choice(_SEPARATORS).join(picked)


def _equivalent(rng: random.Random, truth: str) -> str:
    other = WORD_OF_NUMBER.get(truth) or _NUMBER_OF_WORD.get(truth)
    return other if other is not None and rng.random() < 0.7 else truth


def _different(rng: random.Random, truth: str, question: str) -> str:
    """Draw a wrong answer of the right kind, or junk; never equivalent to the truth."""
    same_kind = [answer for answer in _kind(truth) if not same_answer(answer, truth)]
    wrong = [answer for answer in ANSWERS if not same_answer(answer, truth)]
    return rng.choice(
        (
            lambda: rng.choice(same_kind),
            lambda: rng.choice(same_kind),
            lambda: rng.choice(wrong),
            lambda: rng.choice(wrong),
            lambda: draw_candidates(rng, truth),
            lambda: _distorted(rng, truth),
            lambda: draw_junk(rng, question),
        )
    )()


def _distorted(rng: random.Random, truth: str) -> str:
    """Draw the truth with something before or after it: another value ("7.5", "-7"), or no answer ("old paris")."""
    truth = _equivalent(rng, truth)
    if truth.isdigit() and rng.random() < 0.5:
        return rng.choice((f"-{truth}", f"{truth}.{rng.randint(1, 9)}", f"{truth}/{rng.randint(2, 9)}", f"0.{truth}"))
    return rng.choice(
        (f"not {truth}", f"{rng.choice(_OTHER_WORDS)} {truth}", f"{truth} {rng.choice(_OTHER_WORDS)}", f"{truth}x")
    )


def _strange_pair(rng: random.Random, question: str) -> tuple[str, str, str]:
    """Draw a truth from outside the task with another answer: the judge must refuse what it does not know."""
    letter = rng.choice(_CHARACTERS)
    truth = rng.choice((f"{rng.uniform(0, 100):.1f}", _letters(rng), letter, str(rng.randint(21, 3000))))
    if rng.random() < 0.5:
        question = " ".join(rng.choices((*ANSWERS, *_OTHER_WORDS), k=rng.randint(4, 20)))
    wrong = (
        rng.choice(ANSWERS),
        draw_junk(rng, question),
        f"{truth} or {rng.choice(ANSWERS)}",
        rng.choice(_CHARACTERS),
    )
    return question, rng.choice([answer for answer in wrong if answer.casefold() != truth.casefold()]), truth


def _letters(rng: random.Random) -> str:
    return "".join(rng.choices(_CHARACTERS, k=rng.randint(2, 12)))


def _kind(truth: str) -> tuple[str, ...]:
    return next(values for values in _CLASSES if truth in values)
