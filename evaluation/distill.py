"""`qwenlong distill`: a teacher answers the training questions; verified, filtered answers become demonstrations."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from actors.thinking import whole_thought
from curriculum.files import file_errors, private_files, whole_file
from evaluation.benchmarks import first_items, merge_items
from evaluation.config import DistillConfig
from evaluation.data_card import DataCard, card_json, card_markdown, make_card
from evaluation.evaluate import answer_settings, fill_answers, fill_scores, prompt_encoder
from evaluation.filters import (
    RejectedAs,
    foreign_share,
    has_format,
    is_near_duplicate,
    is_ungrounded,
    repetition,
)
from evaluation.grounding import DocumentIndex, ground
from evaluation.progress import Progress
from evaluation.questions import num_rejects, read_sources
from evaluation.record import Answer, Item, Outcome
from evaluation.scoring import current, scorer_fingerprint
from evaluation.store import EvaluationFolder
from reward.thinking import thinking_of

Accuracies = Mapping[tuple[str, str, int], float | None]
"""Accuracy of each answer by its key: 1.0 right, 0.0 wrong, None unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The answers that become demonstrations, and why the others do not."""

    kept: tuple[tuple[Item, Answer], ...]
    rejects: Counter[RejectedAs]


@private_files()
def distill(config: DistillConfig, *, out: Path, progress: Progress) -> DataCard:
    """Make a set of demonstrations, or continue the one in `out`.

    The folder then holds settings.json, answers.jsonl, scores.jsonl, sft.parquet, data_card.json and data_card.md.

    Raises:
        UserError: a source, the teacher or the folder cannot be used.
        GeneratorDown: the teacher does not answer any more; the same command continues the set.
    """
    sources = read_sources(config.sources, progress)
    questions = first_items(merge_items(sources.values()), config.max_items)
    with EvaluationFolder(out, answer_settings(config.generator, config.sampling)) as folder:
        items = fitting(questions, config, progress)
        answers = asyncio.run(_ask(config, items, folder, progress))
        scorer = scorer_fingerprint(config.reward)
        scores = [score for answer in answers if (score := current(answer, folder.scores, scorer)) is not None]
        selection = select(items, answers, {score.key: score.accuracy for score in scores}, config)
        card = make_card(
            num_questions=len(items),
            num_over_long=len(questions) - len(items),
            kept=selection.kept,
            rejects=selection.rejects,
            refused_rows=num_rejects(sources),
        )
        write_demonstrations(selection.kept, folder.path / "sft.parquet")
        folder.write_json("data_card.json", card_json(card, config))
        folder.write_text("data_card.md", card_markdown(card, config))
    return card


def fitting(items: Sequence[Item], config: DistillConfig, progress: Progress) -> list[Item]:
    """Return the questions whose whole document fits the prompt: the teacher must see what a demonstration shows."""
    encoder = prompt_encoder(config.generator)
    with progress.stage("lengths", total=len(items), done=0) as step:
        found: list[Item] = []
        for item in items:
            if len(encoder.encode(item.context, item.question)) <= config.sampling.max_prompt_tokens:
                found.append(item)
            step()
    progress.say(f"{len(items) - len(found)} of {len(items)} questions are too long to be asked")
    return found


def select(
    items: Sequence[Item], answers: Sequence[Answer], accuracies: Accuracies, config: DistillConfig
) -> Selection:
    """Choose the demonstrations of every question: the shortest that pass all checks, without near-duplicates."""
    by_item: dict[tuple[str, str], list[Answer]] = {}
    for answer in answers:
        by_item.setdefault(answer.item_key, []).append(answer)
    kept: list[tuple[Item, Answer]] = []
    rejects: Counter[RejectedAs] = Counter()
    for item in items:
        index = DocumentIndex(item.context)
        good: list[Answer] = []
        for answer in by_item.get(item.key, []):
            reason = fault_of(item, answer, accuracies[answer.key], index, config)
            if reason is None:
                good.append(answer)
            else:
                rejects[reason] += 1
        chosen: list[Answer] = []
        for answer in sorted(good, key=lambda answer: (answer.response_tokens, answer.sample)):
            if len(chosen) == config.max_kept:
                rejects[RejectedAs.SURPLUS] += 1
            elif is_near_duplicate(answer.text, [other.text for other in chosen]):
                rejects[RejectedAs.DUPLICATE] += 1
            else:
                chosen.append(answer)
        kept += [(item, answer) for answer in chosen]
    return Selection(kept=tuple(kept), rejects=rejects)


def fault_of(
    item: Item, answer: Answer, accuracy: float | None, document: DocumentIndex, config: DistillConfig
) -> RejectedAs | None:
    """Return the first check that an answer fails; None where it passes all."""
    checks = (
        (RejectedAs.FAILED, lambda: answer.outcome is Outcome.FAILED),
        (RejectedAs.TRUNCATED, lambda: answer.outcome is Outcome.TRUNCATED),
        (RejectedAs.UNKNOWN, lambda: accuracy is None),
        (RejectedAs.WRONG, lambda: accuracy != 1.0),
        (RejectedAs.NO_FORMAT, lambda: not has_format(answer.text)),
        (RejectedAs.TOO_SHORT, lambda: answer.response_tokens < config.min_response_tokens),
        (RejectedAs.TOO_LONG, lambda: answer.prompt_tokens + answer.response_tokens > config.max_total_tokens),
        (RejectedAs.MIXED_LANGUAGE, lambda: _foreign(item, answer) > config.max_foreign_share),
        (RejectedAs.REPETITIVE, lambda: repetition(answer.text) > config.max_repetition),
        (RejectedAs.UNGROUNDED, lambda: _is_ungrounded(item, answer, document, config.min_grounding)),
    )
    return next((reason for reason, fails in checks if fails()), None)


def write_demonstrations(kept: Sequence[tuple[Item, Answer]], path: Path) -> None:
    """Write parquet rows `{id, data_source, context, question, answers, response}`, whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = pa.string()
    schema = pa.schema(
        [("id", text), ("data_source", text), ("context", text), ("question", text), ("answers", pa.list_(text)),
         ("response", text)]
    )  # fmt: skip
    rows = [
        {
            "id": f"{item.item_id}-{answer.sample}",
            "data_source": item.data_source,
            "context": item.context,
            "question": item.question,
            "answers": list(item.answers),
            "response": whole_thought(answer.text),
        }
        for item, answer in kept
    ]
    with whole_file(path) as partial, file_errors(path, "written"):
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), partial)


async def _ask(
    config: DistillConfig, items: Sequence[Item], folder: EvaluationFolder, progress: Progress
) -> list[Answer]:
    answers = await fill_answers(
        config.generator, config.sampling, items, folder, progress, max_in_flight=config.max_in_flight
    )
    await fill_scores(config.reward, items, answers, folder, progress)
    return answers


def _foreign(item: Item, answer: Answer) -> float:
    return foreign_share(answer.text, f"{item.context}\n{item.question}")


def _is_ungrounded(item: Item, answer: Answer, document: DocumentIndex, min_precision: float) -> bool:
    passages = ground(thinking_of(answer.text), document, question=item.question)
    return is_ungrounded(passages, min_precision=min_precision)
