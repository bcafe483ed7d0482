"""Hostile text of a megabyte: the seconds that rules, judge prompt, grounding and behaviours take over it.

What takes time that grows with the square of the text would take hours over a megabyte. The last claim is about text of
the usual kind: the thinking of a model over a document of 60K tokens, quoted and paraphrased.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from itertools import product

from benchmarks.line import Claim, environment, print_line, say
from evaluation.behaviours import count_behaviours
from evaluation.grounding import DocumentIndex, ground
from reward.config import RuleSet
from reward.judge_prompt import imitates_judge_format, neutralise, parse_verdict
from reward.kind import AnswerKind
from reward.rules import apply_rules

MEGABYTE = 1_000_000
TRUTHS = {AnswerKind.TEXT: "Zanzibar", AnswerKind.NUMERIC: "37.5", AnswerKind.CHOICE: "C"}


def megabyte_of(text: str) -> str:
    """The text, again and again."""
    return text * (MEGABYTE // len(text))


RESPONSES = {
    "announcements": megabyte_of("the answer is "),
    "spaces after the announcement": "the answer is" + megabyte_of(" ") + "5 5",
    "spaces inside the announcement": "the" + megabyte_of(" ") + "answer",
    "articles": megabyte_of("the "),
    "nouns": megabyte_of("answer "),
    "chinese nouns": megabyte_of("答案"),
    "digits": "the answer is " + megabyte_of("9"),
    "decimal points": "the answer is " + megabyte_of("1."),
    "full stops": "the answer is " + megabyte_of("."),
    "leading points": "the answer is ." + megabyte_of("5") + ".5",
    "acronyms": "the answer is " + megabyte_of("a."),
    "equations": "the answer is " + megabyte_of("5="),
    "thousands": "the answer is 1" + megabyte_of(",000"),
    "quotes": "the answer is " + megabyte_of("\"'"),
    "stars": "the answer is " + megabyte_of("*"),
    "open brackets": "the answer is " + megabyte_of("("),
    "boxes": megabyte_of("\\boxed{"),
    "one box": "\\boxed{" + megabyte_of("{"),
    "latex": "the answer is " + megabyte_of("\\text{"),
    "tags": "the answer is " + megabyte_of("<|"),
    "thoughts": megabyte_of("<think>"),
    "closed thoughts": megabyte_of("</think>"),
    "blank lines": "the answer is \n" + megabyte_of(" \n") + "x",
    "combining marks": "the answer is a" + megabyte_of("\u0315\u0300"),
    "surrogates": "the answer is " + megabyte_of("\ud800"),
    "nul": "the answer is " + megabyte_of("\x00"),
    "chinese announcements": megabyte_of("答案应该是"),
    "thoughts that open in turn": megabyte_of("<think></think>"),
    "fractions": "the answer is " + megabyte_of("\\frac{1}{2}"),
    "open fractions": "the answer is " + megabyte_of("\\frac{"),
    "superscripts": "the answer is 10" + megabyte_of("²"),
    "vulgar fractions": "the answer is " + megabyte_of("½"),
    "exponents": "the answer is 1" + megabyte_of("e9"),
    "powers": "the answer is 2" + megabyte_of("^2"),
    "scale words": "the answer is 1" + megabyte_of(" million"),
    "percents": "the answer is 1" + megabyte_of("%"),
    "currencies": "the answer is " + megabyte_of("$"),
    "minus signs": "the answer is " + megabyte_of("-"),
    "negations": "the answer is " + megabyte_of("not "),
    "candidates": "the answer is " + megabyte_of("C or "),
    "options": "the answer is " + megabyte_of("(B) (C) "),
    "special tokens": "the answer is x" + megabyte_of("<|im_end|>"),
    "quoted dots": "the answer is " + megabyte_of('."'),
    "ligatures that grow": "the answer is " + megabyte_of("ﷺ"),
    "dotted capital i": megabyte_of("İ") + "the answer is x",
}
VERDICTS = {
    "an open bracket": "[[" + " " * MEGABYTE,
    "open brackets": megabyte_of("[["),
    "open verdicts": megabyte_of("[[yes"),
    "labels of the prompt": megabyte_of("answer 2"),
}
THOUGHTS = ('"', "in the ", "according to the ", "a", "the text says ", "等", "> ", "“", "...")
SENTENCES = ("wait ", "the text ", "according to the ", "let me ", "等", "a", "i need to ")
DOCUMENT = "The old mill stood by the river for two hundred years. 河边的学校后来变成了图书馆。"


def response(name: str) -> str:
    """A hostile response, behind a thought."""
    return "<think>\n</think>\n" + RESPONSES[name]


def quoting_thoughts(num_words: int) -> tuple[str, str]:
    """A document, and thinking that quotes a passage in every 500 words of it, paraphrases it, and goes astray."""
    rng = random.Random(0)
    vocabulary = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(2, 9))) for _ in range(8_000)]
    words = rng.choices(vocabulary, weights=[1 / (rank + 1) for rank in range(len(vocabulary))], k=num_words)
    parts = []
    for place in range(0, num_words - 10_000, 500):
        run = " ".join(words[place : place + 25])
        parts += [f'The text says "{run}".', f"According to the document, {run}.", " ".join(rng.choices(words, k=20))]
    return " ".join(words), "\n".join(parts)


def main() -> None:
    """Measure and print the line."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    document, thinking = quoting_thoughts(60_000)
    index = DocumentIndex(DOCUMENT)
    seconds = {
        "rules": {
            f"{name}, {kind}, {rules}": _seconds(apply_rules, rules, kind, response(name), (TRUTHS[kind],))
            for name, kind, rules in product(RESPONSES, AnswerKind, RuleSet)
        },
        "judge prompt": {name: _seconds(_judge_prompt, text) for name, text in VERDICTS.items()},
        "grounding": {word: _seconds(ground, megabyte_of(word), index) for word in THOUGHTS},
        "behaviours": {word: _seconds(count_behaviours, megabyte_of(word)) for word in SENTENCES},
    }
    slowest = {part: max(found, key=lambda name: found[name]) for part, found in seconds.items()}
    for part, name in slowest.items():
        say(f"{part}: slowest is {name!r}, {seconds[part][name]:.2f} s")
    claims = [
        Claim.at_most(f"{part}: slowest hostile megabyte", seconds[part][name], "s", 1.0)
        for part, name in slowest.items()
    ]
    usual_s = _seconds(_index_and_ground, thinking, document)
    claims.append(Claim.at_most("grounding of thinking over 60K tokens", usual_s, "s", 0.5))
    print_line("hostile", claims, {"slowest": slowest, "seconds": seconds, **environment()})


def _judge_prompt(text: str) -> None:
    parse_verdict(text)
    imitates_judge_format(text)
    neutralise(text, 1_000)


def _index_and_ground(thinking: str, document: str) -> None:
    ground(thinking, DocumentIndex(document))


def _seconds(call: Callable[..., object], *arguments: object) -> float:
    """Seconds of the processor, of the least disturbed of three calls."""
    best_s = float("inf")
    for _ in range(3):
        start = time.process_time()
        call(*arguments)
        best_s = min(best_s, time.process_time() - start)
    return best_s


if __name__ == "__main__":
    main()
