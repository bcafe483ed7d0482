"""The answering loop: it asks for every missing sample and stores each answer at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

from actors.rollout import sampling_seed
from evaluation.config import SamplingConfig
from evaluation.generator import Generator
from evaluation.prompts import Prompt, PromptEncoder, make_prompt
from evaluation.record import Answer, Item, Outcome
from evaluation.store import JsonlLog
from evaluation.task_group import task_group
from reward.chat_endpoint import NoReplyError


def missing_samples(items: Iterable[Item], log: JsonlLog[Answer], *, num_samples: int) -> dict[Item, tuple[int, ...]]:
    """Return the indices of the samples of each item that were never answered, or only failed."""
    missing: dict[Item, tuple[int, ...]] = {}
    for item in items:
        answers = [log.get((*item.key, sample)) for sample in range(num_samples)]
        samples = tuple(i for i, answer in enumerate(answers) if answer is None or answer.outcome is Outcome.FAILED)
        if samples:
            missing[item] = samples
    return missing


async def answer_all(
    missing: Mapping[Item, tuple[int, ...]],
    generator: Generator,
    encoder: PromptEncoder,
    log: JsonlLog[Answer],
    sampling: SamplingConfig,
    *,
    max_in_flight: int,
    on_answer: Callable[[Answer], None],
) -> None:
    """Answer every missing sample.

    Consumes: `missing`, in order.  Waits for: a free slot, then the generator.  Unblocked by: every finished answer.
    A prompt that gets no answer is stored as failed; an error that concerns all of them ends the loop, and what was
    answered until then is stored.
    """
    slots = asyncio.Semaphore(max_in_flight)
    async with task_group() as group:
        for item, samples in missing.items():
            await slots.acquire()  # the first sample's slot: prompts are made only when they can be sent
            prompt = await asyncio.to_thread(_try_prompt, item, encoder, sampling.max_prompt_tokens)
            for index, sample in enumerate(samples):
                if index:
                    await slots.acquire()
                task = group.create_task(_answer(item, sample, prompt, generator, log, sampling, on_answer))
                task.add_done_callback(lambda _: slots.release())


async def _answer(
    item: Item,
    sample: int,
    prompt: Prompt | str,
    generator: Generator,
    log: JsonlLog[Answer],
    sampling: SamplingConfig,
    on_answer: Callable[[Answer], None],
) -> None:
    seed = sampling_seed(sampling.seed, "/".join(item.key), sample)
    text, num_tokens, outcome, error = "", 0, Outcome.FAILED, None
    if isinstance(prompt, str):
        error = prompt
    else:
        try:
            completion = await generator.generate(prompt, seed=seed)
        except NoReplyError as failure:
            error = str(failure) or type(failure).__name__
        else:
            text, num_tokens = completion.text, completion.num_tokens
            outcome = Outcome.TRUNCATED if completion.is_truncated else Outcome.COMPLETE
    answer = Answer(
        benchmark=item.benchmark,
        item_id=item.item_id,
        sample=sample,
        seed=seed,
        outcome=outcome,
        text=text,
        prompt_tokens=0 if isinstance(prompt, str) else len(prompt.token_ids),
        document_cut=not isinstance(prompt, str) and prompt.document_cut,
        response_tokens=num_tokens,
        error=error,
    )
    log.append(answer)
    on_answer(answer)


def _try_prompt(item: Item, encoder: PromptEncoder, max_tokens: int) -> Prompt | str:
    """Make the prompt, or return why there is none."""
    try:
        return make_prompt(item, encoder, max_tokens=max_tokens)
    except ValueError as error:
        return str(error)
