"""Everything that can be read and checked before a process starts: model, tokenizer, tasks, demonstrations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from actors.model_folder import context_length, folder_or_hub_id, model_digest
from actors.prompt import ChatPrompt, load_tokenizer
from cluster.recipe.config import RunConfig
from cluster.recipe.heldout import HeldOutSet, heldout_set
from cluster.recipe.model_shape import check_shape
from cluster.recipe.truths import note_on_truths, payable_filter
from curriculum.dataset import load_demonstrations, load_questions, load_tasks
from curriculum.errors import UserError
from curriculum.rejects import Reject
from curriculum.task import Task
from learner.sft import DemonstrationBatches
from reward.config import VllmJudge
from reward.judge_prompt import JudgeQuestion, judge_messages


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """The inputs of a run, read and checked."""

    model_path: str
    """Absolute folder, or hub id."""
    prompt: ChatPrompt
    """The tokenizer of that model with its template."""
    tasks: tuple[Task, ...]
    demonstrations: DemonstrationBatches | None
    heldout: HeldOutSet
    """The held-out questions; empty without `data.evaluation`."""
    rejects: Mapping[str, tuple[Reject, ...]]
    """Refused rows by recipe key."""
    notes: tuple[str, ...]
    """What a person should know about the data, one line each."""
    inputs: Mapping[str, str]
    """Digests of the content of data and model, by recipe key."""


def prepare(config: RunConfig) -> Prepared:
    """Read the data of a recipe and check it against the model.

    Raises:
        UserError: model, data or lengths cannot be used; with key, value and way out.
    """
    model_path = folder_or_hub_id(config.model.path, key="model.path")
    check_model(config, model_path)
    prompt = ChatPrompt(load_tokenizer(model_path, trust_remote_code=config.model.trust_remote_code))
    rejects: dict[str, tuple[Reject, ...]] = {}
    inputs = {"model.path": model_digest(model_path)}
    tasks: tuple[Task, ...] = ()
    if config.curriculum.phases and config.data.train is not None:
        found = load_tasks(
            config.data.train,
            encoder=prompt,
            phase_limits=[phase.max_prompt_tokens for phase in config.curriculum.phases],
            over_long=config.data.over_long,
            is_payable=payable_filter(config),
            form=config.data,
        )
        tasks, rejects["data.train"] = found.records, found.rejects
        inputs["data.train"] = found.digest
    demonstrations = None
    if config.sft.epochs and config.data.sft is not None:
        room = min(config.learner.max_tokens_per_microbatch, _max_positions(config, model_path))
        found = load_demonstrations(
            config.data.sft, encoder=prompt, max_tokens=room, judge_prompt=_judge_prompt, form=config.data
        )
        rejects["data.sft"], inputs["data.sft"] = found.rejects, found.digest
        demonstrations = DemonstrationBatches(
            found.records, batch_size=config.sft.batch_size, epochs=config.sft.epochs, seed=config.seed
        )
    note = note_on_truths(tasks, config.reward, key="data.train")
    return Prepared(
        model_path=model_path,
        prompt=prompt,
        tasks=tasks,
        demonstrations=demonstrations,
        heldout=_heldout(config, prompt, rejects, inputs),
        rejects=rejects,
        notes=(note,) if note else (),
        inputs=inputs,
    )


def check_model(config: RunConfig, model_path: str) -> None:
    """Check that the lengths of the recipe fit model and learner, and that the weights, also the judge's, can be read.

    Raises:
        UserError: prompt and response do not fit, or the weights of a local model cannot be read.
    """
    longest, positions = config.max_model_len, _max_positions(config, model_path)
    lengths = f"{config.max_prompt_tokens} prompt + {config.max_response_tokens} response tokens = {longest}"
    if longest > positions:
        raise UserError(
            f"model.path={config.model.path!r}: {lengths} exceed its max_position_embeddings={positions}; lower "
            "curriculum.phases or rollout.max_response_tokens, or extend the model's rope scaling"
        )
    budget = config.learner.max_tokens_per_microbatch
    if longest > budget:
        raise UserError(
            f"learner.max_tokens_per_microbatch={budget}: {lengths} exceed it; raise it to at least {longest}"
        )
    check_shape(config, model_path)
    _check_weights(model_path, "model.path")
    if isinstance(config.reward.judge, VllmJudge):
        key = "reward.judge.model"
        _check_weights(folder_or_hub_id(config.reward.judge.model, key=key), key)


def _check_weights(model_path: str, key: str) -> None:
    """Read the headers of the weight files of a local folder, which shows whether a file is incomplete."""
    from safetensors import SafetensorError, safe_open

    folder = Path(model_path)
    if not folder.is_dir():
        return
    files = sorted(folder.glob("*.safetensors"))
    if not files and not any(folder.glob("*.bin")):
        raise UserError(f"{key}={model_path!r}: no weights (*.safetensors) in the folder; download the whole model")
    for file in files:
        try:
            with safe_open(file, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{key}={model_path!r}: {file.name} cannot be read ({error}); download the model again"
            ) from error


def _judge_prompt(*, question: str, answer: str, truth: str) -> list[dict[str, str]]:
    """Return the prompt that a judge is trained on: the one with which it is asked later."""
    return judge_messages(JudgeQuestion(question=question, answer=answer, truth=truth))


def _max_positions(config: RunConfig, model_path: str) -> int:
    """Return the longest sequence of the model in tokens, rope scaling included."""
    positions = context_length(model_path, key="model.path", trust_remote_code=config.model.trust_remote_code)
    if positions is None:
        raise UserError(f"model.path={config.model.path!r}: config.json has no max_position_embeddings; add it")
    return positions


def _heldout(
    config: RunConfig,
    prompt: ChatPrompt,
    rejects: dict[str, tuple[Reject, ...]],
    inputs: dict[str, str],
) -> HeldOutSet:
    if config.data.evaluation is None or not config.curriculum.phases:
        return HeldOutSet()
    found = load_questions(
        config.data.evaluation,
        encoder=prompt,
        phase_limits=[phase.max_prompt_tokens for phase in config.curriculum.phases],
        over_long=config.data.over_long,
        is_payable=payable_filter(config),
        form=config.data,
    )
    rejects["data.evaluation"], inputs["data.evaluation"] = found.rejects, found.digest
    return heldout_set(config, found.records, prompt)
