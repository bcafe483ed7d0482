"""Right answers in the shapes that models write: how many the strict rule accepts, and how many wrong ones it pays.

`python -m benchmarks.reward --shapes FILE` reads rows with `data_source` and `ground_truth` (JSONL or parquet), writes
each truth in every shape, and scores it. A wrong answer is the truth of another row of the same kind, or the positive
value of a negative number. Prints a table, then one JSON line.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.line import Claim, environment, print_line, say
from reward.answer import accepted_answers
from reward.config import RuleSet
from reward.kind import AnswerKind, kind_of
from reward.rules import apply_rules, strict_match

SHAPES: Mapping[str, str] = {
    "plain": "Therefore, the answer is {}.",
    "bold": "Therefore, the answer is **{}**.",
    "sentence in quotes": '"Therefore, the answer is {}."',
    "answer in brackets": "Therefore, the answer is ({}).",
    "talk about it behind": "Therefore, the answer is {}. The answer is supported by the text.",
    "one more line": "Therefore, the answer is {}.\nThe second document says so.",
    "bullet": "Therefore, the answer is:\n\n- {}",
    "em dash": "Therefore, the answer is — {}",
    "answer tags": "<answer>Therefore, the answer is {}.</answer>",
    "citation": "Therefore, the answer is {} [1].",
    "would be": "The answer would be {}.",
    "final answer": "**Final answer:** {}",
    "box": "The result follows. \\boxed{{{}}}",
}
SIGNS: Mapping[str, str] = {"({})": "brackets", "- {}": "dash", "— {}": "em dash"}


def rows(path: Path) -> list[tuple[str, tuple[str, ...]]]:
    """Return (data source, accepted answers) of every row that can be read."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        records = pq.read_table(path).to_pylist()
    else:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [(record["data_source"], accepted_answers(_truth(record))) for record in records]


def _truth(record: Mapping[str, Any]) -> Any:
    for key in ("ground_truth", "answers", "answer"):
        if key in record:
            return record[key]
    return record["reward_model"]["ground_truth"]


def paid(kind: AnswerKind, response: str, truths: Sequence[str]) -> bool:
    """Return whether the strict rule accepts a response."""
    return apply_rules(RuleSet.STRICT, kind, f"<think>\nLooking.\n</think>\n\n{response}", truths).accepted


def right_answers(items: Sequence[tuple[str, tuple[str, ...]]]) -> dict[str, dict[str, float]]:
    """Return the share of right answers that are accepted, by shape and kind."""
    kinds = Counter(kind_of(source) for source, _ in items)
    table = {}
    for shape, template in SHAPES.items():
        accepted = Counter(
            kind_of(source) for source, truths in items if paid(kind_of(source), template.format(truths[0]), truths)
        )
        table[shape] = {str(kind): accepted[kind] / number for kind, number in kinds.items()}
    return table


def wrong_answers(items: Sequence[tuple[str, tuple[str, ...]]]) -> Iterator[tuple[str, str]]:
    """Yield (truth, response) of wrong answers that are paid: of other rows, and positive values of negative truths."""
    for (source, truths), (_, others) in zip(items, [*items[1:], *items[:1]], strict=True):
        kind = kind_of(source)
        wrong = {
            template.format(others[0]) for template in SHAPES.values() if not strict_match(kind, others[0], truths)
        }
        if truths[0].startswith("-"):
            wrong |= {f"Therefore, the answer is {sign.format(truths[0][1:])}" for sign in SIGNS}
        yield from ((truths[0], response) for response in sorted(wrong) if paid(kind, response, truths))


def print_shapes(paths: Sequence[Path]) -> None:
    """Print the table and the line."""
    items = [item for path in paths for item in rows(path)]
    table = right_answers(items)
    wrong = list(wrong_answers(items))
    for shape, shares in table.items():
        say(f"{shape:22}" + "".join(f"{kind:>10} {share:7.1%}" for kind, share in shares.items()))
    for truth, response in wrong[:20]:
        say(f"paid: {truth!r} for {response!r}")
    lowest = min(share for shares in table.values() for share in shares.values())
    claims = [
        Claim.at_least("right answers accepted, worst shape and kind", lowest, "share", 0.99),
        Claim.at_most("wrong answers paid", len(wrong), "answers", 0),
    ]
    print_line("reward_shapes", claims, {"rows": len(items), "accepted": table, **environment()})
