"""The data card of a distilled set: how much was asked, kept and refused, for which reasons, and the lengths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from curriculum.printable import printable_lines
from evaluation.config import DistillConfig
from evaluation.filters import RejectedAs
from evaluation.markdown import cell
from evaluation.record import Answer, Item


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Distribution of some lengths, in tokens."""

    mean: float
    median: float
    p95: float
    maximum: int

    @classmethod
    def of(cls, tokens: Sequence[int]) -> Lengths | None:
        """Measure some lengths; return None where there are none."""
        if not tokens:
            return None
        return cls(
            mean=float(np.mean(tokens)),
            median=float(np.median(tokens)),
            p95=float(np.quantile(tokens, 0.95)),
            maximum=max(tokens),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DataCard:
    """Numbers of a distilled set."""

    num_questions: int
    """Questions that were asked."""
    num_over_long: int
    """Questions that were not asked because their documents are too long."""
    num_answers: int
    num_kept: int
    num_questions_kept: int
    """Questions with at least one demonstration."""
    kept: Mapping[str, int]
    """Demonstrations by data source."""
    rejects: Mapping[str, int]
    """Refused answers by reason; every reason is listed. With the kept ones they add up to all answers."""
    refused_rows: Mapping[str, int]
    """Rows that could not be read, by source."""
    prompt_tokens: Lengths | None
    response_tokens: Lengths | None
    total_tokens: Lengths | None


def make_card(
    *,
    num_questions: int,
    num_over_long: int,
    kept: Sequence[tuple[Item, Answer]],
    rejects: Counter[RejectedAs],
    refused_rows: Mapping[str, int],
) -> DataCard:
    """Count and measure a set.

    Args:
        num_questions: Questions that were asked.
        num_over_long: Questions that were too long to be asked.
        kept: Question and answer of every demonstration.
        rejects: Refused answers by reason.
        refused_rows: Unreadable rows by source.
    """
    prompts, responses = [answer.prompt_tokens for _, answer in kept], [answer.response_tokens for _, answer in kept]
    return DataCard(
        num_questions=num_questions,
        num_over_long=num_over_long,
        num_answers=len(kept) + rejects.total(),
        num_kept=len(kept),
        num_questions_kept=len({(item.data_source, item.item_id) for item, _ in kept}),
        kept=dict(Counter(item.data_source for item, _ in kept).most_common()),
        rejects={str(reason): rejects[reason] for reason in RejectedAs},
        refused_rows=refused_rows,
        prompt_tokens=Lengths.of(prompts),
        response_tokens=Lengths.of(responses),
        total_tokens=Lengths.of([a + b for a, b in zip(prompts, responses, strict=True)]),
    )


def card_json(card: DataCard, config: DistillConfig) -> dict[str, Any]:
    """Return the card as JSON values, with the configuration that made it."""
    return {**asdict(card), "config": config.model_dump(mode="json")}


def card_markdown(card: DataCard, config: DistillConfig) -> str:
    """Write the card for people."""
    sampling = config.sampling
    lines = [
        "# Distilled demonstrations",
        "",
        f"Teacher: {cell(config.generator.model)}, temperature {sampling.temperature:g}, top-p {sampling.top_p:g}, "
        f"{sampling.num_samples} answers to each question, seed {sampling.seed}. Verified by {config.reward.rules} "
        f"rules and the judge {cell(config.reward.judge.name)}. Sources: {', '.join(map(cell, config.sources))}.",
        "",
        "| | count |",
        "| --- | ---: |",
        f"| questions | {card.num_questions} |",
        f"| too long to be asked | {card.num_over_long} |",
        f"| answers | {card.num_answers} |",
        f"| **demonstrations** | **{card.num_kept}** |",
        f"| questions with a demonstration | {card.num_questions_kept} |",
        "",
        "| answers refused as | count |",
        "| --- | ---: |",
        *(f"| {reason} | {count} |" for reason, count in card.rejects.items()),
        "",
        "| demonstrations by data source | count |",
        "| --- | ---: |",
        *(f"| {cell(source)} | {count} |" for source, count in card.kept.items()),
        "",
        "| tokens | mean | median | p95 | maximum |",
        "| --- | ---: | ---: | ---: | ---: |",
        *(
            f"| {name} | {lengths.mean:,.0f} | {lengths.median:,.0f} | {lengths.p95:,.0f} | {lengths.maximum:,} |"
            for name, lengths in (
                ("prompt", card.prompt_tokens),
                ("response", card.response_tokens),
                ("both", card.total_tokens),
            )
            if lengths is not None
        ),
        "",
        f"Limits: {config.min_response_tokens} response tokens at least, {config.max_total_tokens:,} tokens in all at "
        f"most; foreign script up to {config.max_foreign_share:.0%}, repetition up to {config.max_repetition:.0%}, "
        f"grounding precision from {config.min_grounding:.0%} on; {config.max_kept} demonstrations of a question.",
    ]
    refused = [f"{cell(source)}: {count}" for source, count in card.refused_rows.items() if count]
    lines += ["", f"Unreadable rows: {'; '.join(refused)}."] if refused else []
    return printable_lines("\n".join(lines)) + "\n"
