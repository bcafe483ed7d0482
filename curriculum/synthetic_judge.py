"""Generated training rows for the local judge: are two answers of the local task the same?

A pair is equivalent when the answers are equal or a number and its word; everything else is not. Rows that must be
refused dominate, because a judge that says yes too often pays the policy for junk.
"""

from __future__ import annotations

import random

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

_NUMBER_OF_WORD = {word: number for number, word in WORD_OF_NUMBER.items()}
_YES_SHARE = 0.4
_OTHER_WORDS = (*FILLER, *VALUES, "the", "who", "what", "is", "answer", "yes", "no", "Notes", "Question")


def generate_judge_pairs(*, num_items: int, seed: int, system: str, user_template: str) -> list[dict]:
    """Judge prompts with their verdicts, for the judge's own SFT.

    system: the judge's system prompt. user_template: contains {q}, {prediction} and {gold}.
    Returns rows `{id, messages: [{role, content}, ...], response}` with response "[[YES]]" or "[[NO]]".
    """
    rows = []
    for i in range(num_items):
        rng = random.Random(f"{seed}/judge/{i}")
        question, prediction, gold = draw_pair(rng)
        verdict = "[[YES]]" if same_answer(prediction, gold) else "[[NO]]"
        messages = judge_messages(question, prediction, gold, system=system, user_template=user_template)
        rows.append({"id": f"judge-{i:06d}", "messages": messages, "response": verdict})
    return rows


def judge_messages(
    question: str, prediction: str, gold: str, *, system: str, user_template: str
) -> list[dict[str, str]]:
    """The chat messages that put one pair before the judge; the texts are inserted as data, never as templates."""
    parts = {"{q}": question, "{prediction}": prediction, "{gold}": gold}
    user, rest = "", user_template
    for field in parts:
        before, _, rest = rest.partition(field)
        user += before + parts[field]
    return [{"role": "system", "content": system}, {"role": "user", "content": user + rest}]


def draw_pair(rng: random.Random) -> tuple[str, str, str]:
    """(question, prediction, gold). Golds are digits and words alike: the verdict does not depend on the order."""
    relation = rng.choice(tuple(VALUES))
    numbers = (*NUMBERS, *NUMBER_WORDS)
    gold = rng.choice(numbers if relation == "owns" or rng.random() < 0.25 else VALUES[relation])
    question = _question(rng, relation)
    return question, _equivalent(rng, gold) if rng.random() < _YES_SHARE else _different(rng, gold, question), gold


def _question(rng: random.Random, relation: str) -> str:
    chain = "" if rng.random() < 0.5 else " follows who"
    return f"Question: {rng.choice(NAMES)}{chain} {relation} what?"


def _equivalent(rng: random.Random, gold: str) -> str:
    other = WORD_OF_NUMBER.get(gold) or _NUMBER_OF_WORD.get(gold)
    return other if other is not None and rng.random() < 0.7 else gold


def _different(rng: random.Random, gold: str, question: str) -> str:
    """A wrong answer of the right kind, or junk; never equivalent to the gold."""
    kind = next(values for values in (NAMES, PLACES, FOODS, (*NUMBERS, *NUMBER_WORDS)) if gold in values)
    wrong = [answer for answer in ANSWERS if not same_answer(answer, gold)]
    same_kind = [answer for answer in kind if not same_answer(answer, gold)]
    return rng.choice(
        (
            lambda: rng.choice(same_kind),
            lambda: rng.choice(same_kind),
            lambda: rng.choice(wrong),
            lambda: _joined(rng, gold),
            lambda: _junk(rng, question),
        )
    )()


def _joined(rng: random.Random, gold: str) -> str:
    """Several answers at once, the right one often among them."""
    picked = [*rng.sample(ANSWERS, rng.randint(1, 4)), gold if rng.random() < 0.7 else rng.choice(ANSWERS)]
    rng.shuffle(picked)
    return rng.choice((" ", ", ", " or ", " and ", ". ")).join(picked)


def _junk(rng: random.Random, question: str) -> str:
    """What a policy might say to please a judge: nothing, a letter, the question, other words, a verdict."""
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ?!.,-*"
    return rng.choice(
        (
            lambda: "",
            lambda: rng.choice(letters),
            lambda: "".join(rng.choices(letters, k=rng.randint(2, 12))),
            lambda: question,
            lambda: question.removeprefix("Question: "),
            lambda: " ".join(rng.choices(_OTHER_WORDS, k=rng.randint(1, 5))),
            lambda: rng.choice(("YES", "[[YES]]", "((YES))", "Yes", "(insert answer here)", "the same")),
        )
    )()
