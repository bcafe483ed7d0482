"""`qwenlong eval`: read benchmarks, ask what is missing, score it, write the report."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from actors.prompt import TEMPLATE, ChatPrompt, load_tokenizer
from curriculum.controls import Control
from curriculum.errors import RunFailed
from curriculum.files import private_files
from evaluation.answering import answer_all, missing_samples
from evaluation.behaviour_judge import behaviour_judge, count_all, stored_counts
from evaluation.behaviours import count_behaviours
from evaluation.config import EvaluationConfig, GeneratorConfig, SamplingConfig, template_arguments
from evaluation.generator_factory import generator_session
from evaluation.grounding import DocumentIndex, ground, grounding_precision
from evaluation.paper import paper_table
from evaluation.progress import Progress
from evaluation.questions import Questions, read_questions
from evaluation.record import Answer, Item, Outcome
from evaluation.report import report_json, report_markdown
from evaluation.scoring import current, score_all, scorer_fingerprint, unscored
from evaluation.store import EvaluationFolder, fingerprint
from evaluation.summary import Result, Summary, summarise
from reward.config import JudgeConfig, RewardConfig
from reward.hybrid import HybridScorer
from reward.judge_back_end import gpu_is_there, judge_session
from reward.thinking import thinking_of


@private_files()
def evaluate(config: EvaluationConfig, *, out: Path, progress: Progress, questions: Questions | None = None) -> Summary:
    """Run an evaluation, or continue the one in `out`.

    The folder then holds settings.json, answers.jsonl, scores.jsonl, results.jsonl, report.json and report.md.

    Args:
        config: what is asked, and of whom.
        out: the folder.
        progress: is told what happens.
        questions: those of the configuration, where they have been read already.

    Raises:
        UserError: a source, the model or the folder cannot be used.
        GeneratorDown: the generator does not answer any more; the same command continues the evaluation.
    """
    questions = questions or read_questions(config, progress)
    with EvaluationFolder(out, answer_settings(config.generator, config.sampling)) as folder:
        answers = asyncio.run(_ask(config, questions, folder, progress))
        results = _results(config, questions.items, answers, folder, progress)
        summary = summarise(
            results,
            seed=config.sampling.seed,
            rejects=questions.rejects,
            comparisons=questions.comparisons,
            under=_results_under(config, questions, answers, folder),
        )
        folder.write_text("results.jsonl", "".join(_line(result) for result in results))
        folder.write_json("report.json", report_json(summary, config))
        folder.write_text("report.md", report_markdown(summary, config, paper_table()))
    return summary


def answer_settings(generator: GeneratorConfig, sampling: SamplingConfig) -> dict[str, Any]:
    """Return what decides an answer.

    The number of samples and items, the judge, and the place where a model runs do not.
    """
    return {
        "generator": generator.type,
        "model": generator.model,
        "tokenizer": generator.tokenizer,
        **sampling.model_dump(mode="json", exclude={"num_samples"}),
        "template": fingerprint(TEMPLATE),
        **({"template_arguments": arguments} if (arguments := template_arguments(generator)) else {}),
        **({"request_fields": fields} if (fields := getattr(generator, "request_fields", None)) else {}),
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
    """Answer what is missing; return the answers of all items, in their order.

    The model is loaded only where an answer is missing.

    Raises:
        RunFailed: no prompt at all got an answer, so that there is nothing to report.
    """
    missing = missing_samples(items, folder.answers, num_samples=sampling.num_samples)
    total = len(items) * sampling.num_samples
    done = total - sum(map(len, missing.values()))
    progress.say(f"{total} answers wanted, {done} are there")
    if missing:
        encoder = prompt_encoder(generator)
        with progress.stage("answers", total=total, done=done) as step:
            async with generator_session(generator, sampling) as session:
                await answer_all(missing, session, encoder, folder.answers, sampling, max_in_flight=max_in_flight,
                                 on_answer=lambda _: step())  # fmt: skip
    keys = [(*item.key, sample) for item in items for sample in range(sampling.num_samples)]
    answers = [answer for key in keys if (answer := folder.answers.get(key)) is not None]
    failures = Counter(answer.error or "unknown" for answer in answers if answer.outcome is Outcome.FAILED)
    if not failures:
        return answers
    reason, count = failures.most_common(1)[0]
    if failures.total() == len(answers):
        raise RunFailed(
            f"none of {len(answers)} prompts got an answer; most often, {count} times: {reason}; correct that, and the "
            "command goes on where it stopped"
        )
    progress.say(
        f"{failures.total()} of {len(answers)} prompts have no answer and count as wrong; most often, {count} times: "
        f"{reason}"
    )
    return answers


def prompt_encoder(generator: GeneratorConfig) -> ChatPrompt:
    """Return what makes the prompts of a generator, and measures those of an endpoint."""
    tokenizer = load_tokenizer(generator.tokenizer, trust_remote_code=generator.trust_remote_code)
    return ChatPrompt(tokenizer, template_arguments=template_arguments(generator))


async def fill_scores(
    config: RewardConfig, items: Sequence[Item], answers: Sequence[Answer], folder: EvaluationFolder, progress: Progress
) -> None:
    """Score the answers that have no score of this scorer."""
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
    if judge is not None:
        judge.tally.check()
        if note := judge.tally.note():
            progress.say(note)


async def _ask(
    config: EvaluationConfig, questions: Questions, folder: EvaluationFolder, progress: Progress
) -> list[Answer]:
    """Answer and score all questions, also under the controls; count the behaviours of those that have a document."""
    items = [*questions.items, *(item for items in questions.under.values() for item in items)]
    answers = await fill_answers(
        config.generator, config.sampling, items, folder, progress, max_in_flight=config.max_in_flight
    )
    await fill_scores(config.reward, items, answers, folder, progress)
    if config.behaviours == "judge":
        own = {item.key for item in questions.items}
        counted = [answer for answer in answers if answer.item_key in own]
        await _fill_counts(config.reward.judge, counted, folder, progress)
    return answers


async def _fill_counts(
    judge: JudgeConfig, answers: Sequence[Answer], folder: EvaluationFolder, progress: Progress
) -> None:
    """Let the judge's model count behaviours where it has not; ask again where it could not."""
    waiting = [answer for answer in answers if stored_counts(answer, folder.counts, judge.name) is None]
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
    """Return every answer with its score, behaviours and grounding, document by document."""
    scorer = scorer_fingerprint(config.reward)
    by_item: dict[tuple[str, str], list[Answer]] = {}
    for answer in answers:
        by_item.setdefault(answer.item_key, []).append(answer)
    results: list[Result] = []
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
                        else stored_counts(answer, folder.counts, config.reward.judge.name),
                        passages=ground(thinking, index, question=item.question),
                    )
                )
                step()
    return results


def _results_under(
    config: EvaluationConfig, questions: Questions, answers: Sequence[Answer], folder: EvaluationFolder
) -> dict[Control, list[Result]]:
    """Return the answers under each control with their scores, by the benchmarks that the questions come from."""
    scorer = scorer_fingerprint(config.reward)
    found: dict[Control, list[Result]] = {}
    for control, items in questions.under.items():
        keys = {item.key for item in items}
        own = [answer for answer in answers if answer.item_key in keys]
        scores = [(answer, current(answer, folder.scores, scorer)) for answer in own]
        found[control] = [
            Result(
                answer=replace(answer, benchmark=answer.benchmark.removesuffix(f"/{control}")),
                score=score,
                behaviours=None,
                passages=(),
            )
            for answer, score in scores
            if score is not None
        ]
    return found


def _line(result: Result) -> str:
    """Write one answer for a viewer: offsets in thinking and document let it highlight the evidence."""
    values = {
        **asdict(result.answer),
        **asdict(result.score),
        "behaviours": result.behaviours,
        "grounding_precision": grounding_precision(result.passages),
        "passages": [{**asdict(passage), "found": passage.found} for passage in result.passages],
    }
    return json.dumps(values, ensure_ascii=True) + "\n"
