"""Search for leaks: seconds and memory at the size of the paper's sets, and which changed documents are found.

Documents are made of words of a Zipf distribution; a tenth of the held-out ones are training documents that were
changed: the first half, the second half, both ends without the middle third, the middle fifth, or other case and white
space. Memory is the growth of the peak resident set.

`--train FILE --held-out FILE` measures real sets as well: how many questions are left out, the largest share of the
shorter document that any pair has in common, and how many of the training documents are found once they are changed.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.line import Claim, environment, print_line, say
from curriculum.leaks import RUN_WORDS, KnownQuestions, Traces, traces_of

MAX_SECONDS, MAX_GIB = 60.0, 1.0
VOCABULARY = 20_000

CHANGES: dict[str, Callable[[str], str]] = {
    "first half": lambda text: text[: len(text) // 2],
    "second half": lambda text: text[len(text) // 2 :],
    "without the middle": lambda text: f"{text[: len(text) // 3]} ... {text[-(len(text) // 3) :]}",
    "middle fifth": lambda text: text[2 * len(text) // 5 : 3 * len(text) // 5],
    "case and spaces": lambda text: text.upper().replace(" ", "   "),
}


def main() -> None:
    """Parse the options, measure, print the line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.leaks", description=__doc__)
    parser.add_argument("--documents", type=int, default=1600)
    parser.add_argument("--questions", type=int, default=1400)
    parser.add_argument("--words", type=int, default=45_000, help="of a training document")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", help="a file or hub id of real training questions")
    parser.add_argument("--held-out", help="of real held-out questions")
    options = parser.parse_args()
    made = measure_made(options)
    claims = [
        Claim.at_most("seconds", made["add_s"] + made["match_s"], "s", MAX_SECONDS),
        Claim.at_most("memory", made["peak_gib"], "GiB", MAX_GIB),
        Claim.at_least("changed documents that are found", made["found"] / made["changed"], "share", 1.0),
        Claim.at_most("other documents that are taken for a leak", made["mistaken"], "count", 0),
    ]
    real = measure_real(options.train, options.held_out) if options.train and options.held_out else None
    print_line("leaks", claims, {"made": made, "real": real, "environment": environment("numpy", "xxhash")})


def measure_made(options: argparse.Namespace) -> dict[str, Any]:
    """Compare made-up sets, one document in memory at a time."""
    before, known, seconds = _peak_bytes(), KnownQuestions(), Counter[str]()
    for index in range(options.documents):
        text = _text(options.seed, index, options.words)
        with_time(seconds, "add", lambda text=text, index=index: known.add(traces_of(text, f"question {index}"), "x"))
    changes, outcomes = list(CHANGES.values()), Counter[str]()
    for index in range(options.questions):
        is_changed = index % 10 == 0
        words = options.words if is_changed else options.words // (1 + index % 5)
        text = _text(options.seed, index if is_changed else options.documents + index, words)
        text = changes[index // 10 % len(changes)](text) if is_changed else text
        match = with_time(seconds, "match", lambda text=text, index=index: known.match(traces_of(text, f"new {index}")))
        kind = "changed" if is_changed else "new"
        outcomes[kind] += 1
        outcomes[f"{kind} found"] += match is not None
    return {
        "documents": options.documents,
        "questions": options.questions,
        "words": options.words,
        "add_s": seconds["add"],
        "match_s": seconds["match"],
        "peak_gib": (_peak_bytes() - before) / 2**30,
        "changed": outcomes["changed"],
        "found": outcomes["changed found"],
        "mistaken": outcomes["new found"],
    }


def with_time(seconds: Counter[str], name: str, work: Callable[[], Any]) -> Any:
    """Do something, and add its process time to a sum."""
    start = time.process_time()
    result = work()
    seconds[name] += time.process_time() - start  # type: ignore[assignment]
    return result


def measure_real(train: str, held_out: str) -> dict[str, Any]:
    """Compare real sets."""
    own, others = _questions(train), _questions(held_out)
    known = KnownQuestions()
    traces = [traces_of(context, question) for context, question in own]
    for index, one in enumerate(traces):
        known.add(one, str(index))
    asked = [traces_of(context, question) for context, question in others]
    matches = [known.match(one) for one in asked]
    found = {
        name: sum(known.match(traces_of(change(context), "?")) is not None for context, _ in own)
        for name, change in CHANGES.items()
    }
    return {
        "train": len(own),
        "held_out": len(others),
        "left_out": Counter(str(match.overlap) for match in matches if match is not None),
        "largest_share": largest_share(traces, asked),
        "changed_found": found,
    }


def largest_share(train: Sequence[Traces], held_out: Sequence[Traces]) -> float:
    """Largest share of the shorter document that a pair has in common, counted over all of its runs."""
    best = 0.0
    for number, asked in enumerate(held_out):
        for one in train:
            shorter = min(len(asked.runs_R), len(one.runs_R)) + RUN_WORDS - 1
            common = int(np.isin(asked.runs_R, one.runs_R, assume_unique=True).sum())
            best = max(best, (common + RUN_WORDS - 1) / shorter if common else 0.0)
        if number % 20 == 0:
            say(f"{number} of {len(held_out)} held-out documents compared one by one: at most {best:.3f}")
    return best


def _questions(source: str) -> list[tuple[str, str]]:
    from evaluation.benchmarks import load_items

    return [(item.context, item.question) for item in load_items(source).records]


def _text(seed: int, index: int, num_words: int) -> str:
    ranks = np.random.default_rng([seed, index]).zipf(1.2, num_words) % VOCABULARY
    return " ".join(f"w{rank}" for rank in ranks.tolist())


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
