"""Generated documents, questions and demonstrations for the local task: look up one fact, or follow a chain of two.

A document is a shuffled list of facts and filler ("Notes: alice visits paris. the hill road wind. ..."). Every word of
the local tokenizer is one token when a space precedes it, and so is every full stop: lengths "in words" below count
words and full stops, and equal the number of tokens of the document.

Item `i` depends on (seed, prefix, i) alone: not on how many items are asked for, nor on PYTHONHASHSEED.
Judge training pairs about the same answers are in `curriculum.synthetic_judge`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from curriculum.errors import UserError


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words(
    "alice bob carol david emma frank grace henry irene jack karen leo mary nick olga paul queen rosa sam tina "
    "uma victor wendy xavier yara zack anna brian clara derek elsa felix gina hugo iris jonas kira liam mona nora "
    "oscar petra quinn ralph sara tom ursula vera walt xena yuri zoe amir bella cyrus dora ethan fiona gus hana "
    "ivan julia kurt lena"
)
PLACES = _words(
    "paris london rome tokyo cairo delhi lima oslo berlin madrid boston dublin prague vienna athens seoul miami "
    "quito havana kyoto milan geneva lisbon dakar"
)
FOODS = _words(
    "rice bread soup cheese apples honey fish beans corn plums dates eggs figs kale leeks melon nuts olives pasta "
    "peas pears tofu yams salad"
)
NUMBER_WORDS = _words(
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
NUMBERS = tuple(str(value) for value in range(1, len(NUMBER_WORDS) + 1))
FILLER = _words(
    "rain wind river market quiet morning evening garden old bright slow gentle road hill cloud stone bridge "
    "window music clock winter summer distant silver"
)
VALUES = {"visits": PLACES, "eats": FOODS, "owns": NUMBERS, "follows": NAMES}
"""Relation -> the values it can take. The classes are disjoint."""

WORD_OF_NUMBER = dict(zip(NUMBERS, NUMBER_WORDS, strict=True))
MIN_WORDS = 16
"""Shortest document that holds the opening, a chain of two facts and something else."""

_OPENING = "Notes:"
_OPENING_WORDS = 2
_FACT_WORDS = 4
_FILLER_SHARE = 0.2
_ATTRIBUTES = ("visits", "eats", "owns")

Fact = tuple[str, str, str]
"""(name, relation, value)."""
GeneratedRow = dict[str, Any]
"""A row as a data file would hold it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One generated text and the facts it states."""

    text: str
    """Opening and sentences, separated by single spaces."""
    facts: dict[tuple[str, str], str]
    """(name, relation) -> value; a pair occurs once in the text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question with the facts that answer it, in the order in which they are needed."""

    text: str
    evidence: tuple[Fact, ...]
    """One fact, or two where the first one's value is the second one's name."""

    @property
    def answer(self) -> str:
        """Value of the last fact."""
        return self.evidence[-1][2]

    @property
    def data_source(self) -> str:
        """`local_hop1` or `local_hop2`."""
        return f"local_hop{len(self.evidence)}"


def generate_items(*, num_items: int, min_words: int, max_words: int, seed: int, prefix: str) -> list[GeneratedRow]:
    """Write questions on documents of `min_words`..`max_words` words (inclusive), half of them chains of two facts.

    Returns:
        Rows `{id, data_source, context, question, answers}`.

    Raises:
        UserError: The length range is empty or too short.
    """
    _check_lengths(min_words, max_words)
    return [_item(f"{prefix}-{i:06d}", _rng(seed, prefix, i), min_words, max_words)[0] for i in range(num_items)]


def generate_demonstrations(
    *, num_items: int, min_words: int, max_words: int, seed: int, quote_share: float, word_share: float, prefix: str
) -> list[GeneratedRow]:
    """Write items with a correct response each: all teach the format, some teach to look the answer up.

    Args:
        num_items: Number of rows.
        min_words: Shortest document.
        max_words: Longest document.
        seed: Seed of all draws.
        quote_share: Share whose thinking quotes the evidence; the others answer (correctly) after an empty thinking.
        word_share: Share of the numeric answers written as a word ("seven" where the document says "7").
        prefix: Beginning of the ids.

    Returns:
        Rows `{id, data_source, context, question, answers, response}`; no end-of-turn token.

    Raises:
        UserError: The length range is empty or too short.
    """
    _check_lengths(min_words, max_words)
    rows: list[GeneratedRow] = []
    for i in range(num_items):
        rng = _rng(seed, prefix, i)
        row, question = _item(f"{prefix}-{i:06d}", rng, min_words, max_words)
        quotes, in_words = rng.random() < quote_share, rng.random() < word_share
        rows.append({**row, "response": write_response(question, quotes=quotes, in_words=in_words)})
    return rows


def draw_document(rng: random.Random, *, min_words: int, max_words: int, chain: tuple[Fact, ...] = ()) -> Document:
    """Write a document that states `chain` among random facts and filler.

    Its length is drawn from `min_words`..`max_words`; it is at most 2 words shorter.
    """
    left = rng.randint(min_words, max_words) - _OPENING_WORDS - _FACT_WORDS * len(chain)
    facts = {(name, relation): value for name, relation, value in chain}
    sentences = [_sentence(fact) for fact in chain]
    keys = [(name, relation) for name in NAMES for relation in VALUES if (name, relation) not in facts]
    rng.shuffle(keys)
    while left >= _FACT_WORDS:
        if keys and (left in (4, 8) or rng.random() >= _FILLER_SHARE):
            fact = _draw_fact(rng, *keys.pop())
            facts[fact[:2]] = fact[2]
            sentence, size = _sentence(fact), _FACT_WORDS
        else:
            size = min(rng.choice((5, 6, 7)), left)
            sentence = " ".join(["the", *rng.choices(FILLER, k=size - 2)]) + "."
        sentences.append(sentence)
        left -= size
    rng.shuffle(sentences)
    return Document(text=" ".join([_OPENING, *sentences]), facts=facts)


def write_response(question: Question, *, quotes: bool, in_words: bool) -> str:
    """Write the demonstration of a question: thinking (the evidence, or nothing) and the answer sentence."""
    thinking = "".join(f" {_sentence(fact)}" for fact in question.evidence) if quotes else ""
    answer = WORD_OF_NUMBER.get(question.answer, question.answer) if in_words else question.answer
    return f"<think>{thinking}</think> Therefore, the answer is {answer}"


def same_answer(first: str, second: str) -> bool:
    """Return whether two answers of this task mean the same: equal, or a number and its word."""
    return WORD_OF_NUMBER.get(first, first) == WORD_OF_NUMBER.get(second, second)


def vocabulary() -> tuple[str, ...]:
    """Return every word that a document, a question or an answer can contain after a space, each once."""
    words = (*VALUES, *NAMES, *PLACES, *FOODS, *NUMBERS, *NUMBER_WORDS, *FILLER, "the", "who", "what")
    return tuple(dict.fromkeys(words))


def _item(item_id: str, rng: random.Random, min_words: int, max_words: int) -> tuple[GeneratedRow, Question]:
    question = _draw_question(rng)
    document = draw_document(rng, min_words=min_words, max_words=max_words, chain=question.evidence)
    row = {
        "id": item_id,
        "data_source": question.data_source,
        "context": document.text,
        "question": question.text,
        "answers": [question.answer],
    }
    return row, question


def _draw_question(rng: random.Random) -> Question:
    if rng.random() < 0.5:
        name, relation, value = _draw_fact(rng, rng.choice(NAMES), rng.choice(tuple(VALUES)))
        return Question(text=f"Question: {name} {relation} what?", evidence=((name, relation, value),))
    first = _draw_fact(rng, rng.choice(NAMES), "follows")
    second = _draw_fact(rng, first[2], rng.choice(_ATTRIBUTES))
    return Question(text=f"Question: {first[0]} follows who {second[1]} what?", evidence=(first, second))


def _draw_fact(rng: random.Random, name: str, relation: str) -> Fact:
    return name, relation, rng.choice([value for value in VALUES[relation] if value != name])


def _sentence(fact: Fact) -> str:
    return f"{fact[0]} {fact[1]} {fact[2]}."


def _rng(seed: int, prefix: str, index: int) -> random.Random:
    """Return a stream that does not depend on PYTHONHASHSEED: a string seeds it through SHA-512."""
    return random.Random(f"{seed}/{prefix}/{index}")


def _check_lengths(min_words: int, max_words: int) -> None:
    if not MIN_WORDS <= min_words <= max_words:
        raise UserError(
            f"document lengths min_words={min_words}, max_words={max_words} must satisfy {MIN_WORDS} <= min_words <= "
            "max_words; change the length range of the recipe"
        )
