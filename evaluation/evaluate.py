"""`qwenlong eval`: read benchmarks, ask what is missing, score it, write the report."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from actors.prompt import TEMPLATE, ChatPrompt, load_tokenizer
from curriculum.errors import RunFailed
from evaluation.answering import answer_all, missing_work
from evaluation.behaviour_judge import behaviour_judge, count_all, counted
from evaluation.behaviours import count_behaviours, thinking_of
from evaluation.benchmarks import ItemSet, load_items, merge_items
from evaluation.config import EvaluationConfig, GeneratorConfig, SamplingConfig
from evaluation.generator import generator_session
from evaluation.grounding import DocumentIndex, ground
from evaluation.paper import paper_table
from evaluation.progress import Progress
from evaluation.record import Answer, Item, Outcome
from evaluation.report import report_json, report_markdown
from evaluation.scoring import current, score_all, scorer_fingerprint, unscored
from evaluation.store import EvaluationFolder, fingerprint
from evaluation.summary import Result, Summary, summarise
from reward.config import JudgeConfig, RewardConfig
from reward.hybrid import HybridScorer
from reward.judge_back_end import gpu_is_there, judge_session


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """The items of all sources and what was refused of them."""

    items: tuple[Item, ...]
    sets: Mapping[str, ItemSet]
    """By source."""

    @property
    def num_rejects(self) -> dict[str, int]:
        """Refused rows by source."""
        return {source: len(item_set.rejects) for source, item_set in self.sets.items()}


def evaluate(config: EvaluationConfig, *, out: Path, progress: Progress) -> Summary:
    """Run an evaluation, or go on with the one in `out`.

    The folder then holds settings.json, answers.jsonl, scores.jsonl, results.jsonl, report.json and report.md.

    Raises:
        UserError: a source, the model or the folder cannot be used.
        GeneratorDown: the generator is gone; the same command goes on.
    """
    questions = read_questions(config.sources, config.max_items, progress)
    with EvaluationFolder(out, answer_settings(config.generator, config.sampling)) as folder:
        answers = asyncio.run(_ask(config, questions.items, folder, progress))
        results = _results(config, questions.items, answers, folder, progress)
        summary = summarise(results, seed=config.sampling.seed, rejects=questions.num_rejects)
        folder.write_text("results.jsonl", "".join(_line(result) for result in results))
        folder.write_json("report.json", report_json(summary, config))
        folder.write_text("report.md", report_markdown(summary, config, paper_table()))
    return summary


def read_questions(sources: Sequence[str], max_items: int | None, progress: Progress) -> Questions:
    """Read all sources; refused rows are told, one line each for the first few."""
    sets = {source: load_items(source) for source in sources}
    for source, item_set in sets.items():
        for reject in item_set.rejects[:5]:
            progress.say(f"{source}: row {reject.number} refused ({reject.reason}): {reject.detail}")
        if len(item_set.rejects) > 5:
            progress.say(f"{source}: {len(item_set.rejects)} rows refused in all")
    return Questions(items=merge_items(list(sets.values()), max_items=max_items), sets=sets)


def answer_settings(generator: GeneratorConfig, sampling: SamplingConfig) -> dict[str, Any]:
    """What decides an answer; how many samples and items there are, who judges and where a model runs does not."""
    return {
        "generator": generator.type,
        "model": generator.model,
        "tokenizer": generator.tokenizer,
        **sampling.model_dump(mode="json", exclude={"num_samples"}),
        "template": fingerprint(TEMPLATE),
    }


async def fill_answers(
    generator: GeneratorConfig,
    sampling: SamplingConfig,
    items: Sequence[Item],
    folder: EvaluationFolder,
    progress: Progress,
    *,
    max_in_flight: int,
) -> list[Answer]:
    """Answer what is missing; return the answers of all items, in their order. No model is loaded for nothing.

    Raises:
        RunFailed: no prompt at all got an answer, so that there is nothing to report.
    """
    work = missing_work(items, folder.answers, num_samples=sampling.num_samples)
    total = len(items) * sampling.num_samples
    missing = sum(len(part.samples) for part in work)
    progress.say(f"{total} answers wanted, {total - missing} are there")
    if work:
        encoder = ChatPrompt(load_tokenizer(generator.tokenizer, trust_remote_code=generator.trust_remote_code))
        with progress.stage("answers", total=total, done=total - missing) as step:
            async with generator_session(generator, sampling) as session:
                await answer_all(work, session, encoder, folder.answers, sampling, max_in_flight=max_in_flight,
                                 on_answer=lambda _: step())  # fmt: skip
    keys = [(*item.key, sample) for item in items for sample in range(sampling.num_samples)]
    answers = [answer for key in keys if (answer := folder.answers.get(key)) is not None]
    if answers and all(answer.outcome is Outcome.FAILED for answer in answers):
        raise RunFailed(
            f"none of {len(answers)} prompts got an answer ({answers[0].error}); put the cause right, then run "
            "the same command again"
        )
    return answers


async def fill_scores(
    config: RewardConfig, items: Sequence[Item], answers: Sequence[Answer], folder: EvaluationFolder, progress: Progress
) -> None:
    """Score what has no score of this scorer."""
    name = scorer_fingerprint(config)
    waiting = unscored(answers, folder.scores, name)
    if not waiting:
        return
    with progress.stage("scores", total=len(answers), done=len(answers) - len(waiting)) as step:
        async with judge_session(config.judge, on_gpu=gpu_is_there()) as judge:
            await score_all(
                waiting,
                {item.key: item for item in items},
                HybridScorer(config, judge),
                folder.scores,
                scorer_name=name,
                on_score=lambda _: step(),
            )


async def _ask(
    config: EvaluationConfig, items: Sequence[Item], folder: EvaluationFolder, progress: Progress
) -> list[Answer]:
    answers = await fill_answers(
        config.generator, config.sampling, items, folder, progress, max_in_flight=config.max_in_flight
    )
    await fill_scores(config.reward, items, answers, folder, progress)
    if config.behaviours == "judge":
        await _fill_counts(config.reward.judge, answers, folder, progress)
    return answers


async def _fill_counts(
    judge: JudgeConfig, answers: Sequence[Answer], folder: EvaluationFolder, progress: Progress
) -> None:
    """Let the judge's model count behaviours where it has not; what it could not count is asked again."""
    waiting = [answer for answer in answers if counted(answer, folder.counts, judge.name) is None]
    if not waiting:
        return
    with progress.stage("behaviours", total=len(answers), done=len(answers) - len(waiting)) as step:
        async with behaviour_judge(judge) as session:
            await count_all(waiting, session, folder.counts, counter=judge.name, on_count=step)


def _results(
    config: EvaluationConfig,
    items: Sequence[Item],
    answers: Sequence[Answer],
    folder: EvaluationFolder,
    progress: Progress,
) -> list[Result]:
    """Every answer with its score, behaviours and grounding, document by document."""
    scorer = scorer_fingerprint(config.reward)
    by_item: dict[tuple[str, str], list[Answer]] = {}
    for answer in answers:
        by_item.setdefault(answer.item_key, []).append(answer)
    results = []
    with progress.stage("grounding", total=len(answers), done=0) as step:
        for item in items:
            index = DocumentIndex(item.context)
            for answer in by_item.get(item.key, []):
                score = current(answer, folder.scores, scorer)
                assert score is not None  # every answer was scored before
                thinking = thinking_of(answer.text)
                by_patterns = config.behaviours == "patterns"
                results.append(
                    Result(
                        answer=answer,
                        score=score,
                        behaviours=count_behaviours(thinking)
                        if by_patterns
                        else counted(answer, folder.counts, config.reward.judge.name),
                        grounding=ground(thinking, index, question=item.question),
                    )
                )
                step()
    return results


def _line(result: Result) -> str:
    """One answer for a viewer: offsets of `thinking` and document, so that it can highlight the evidence."""
    values = {
        **asdict(result.answer),
        **asdict(result.score),
        "behaviours": None if result.behaviours is None else asdict(result.behaviours),
        "grounding_precision": result.grounding.precision,
        "passages": [{**asdict(passage), "found": passage.found} for passage in result.grounding.passages],
    }
    return json.dumps(values, ensure_ascii=True) + "\n"
