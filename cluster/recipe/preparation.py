"""Everything that can be read and checked before a process starts: model, tokenizer, tasks, demonstrations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from actors.engine_features import check_folder
from actors.model_folder import context_length, folder_or_hub_id, model_digest, weight_files
from actors.prompt import ChatPrompt, load_tokenizer
from cluster.recipe.config import RunConfig
from cluster.recipe.effects import check_effects, notes_on_data
from cluster.recipe.heldout import HeldOutSet, heldout_set
from cluster.recipe.leaks import LeakWatch, check_sources_differ
from cluster.recipe.model_shape import check_shape
from cluster.recipe.truths import note_on_truths, payable_filter
from curriculum.dataset import Loaded, load_demonstrations, load_questions, load_tasks
from curriculum.errors import UserError
from curriculum.rejects import Reject
from curriculum.shared_folder import SharedFolder
from curriculum.task import Task
from learner.sft import DemonstrationBatches
from reward.config import VllmJudge
from reward.judge_prompt import JudgeQuestion, judge_messages

_Record = TypeVar("_Record")


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
    """What a person should know about settings and data, one line each."""
    inputs: Mapping[str, str]
    """Digests of the content of data and model, by recipe key."""

    @property
    def num_tasks(self) -> list[int]:
        """Tasks of each phase; every phase has some."""
        phases = [task.phase for task in self.tasks]
        return [phases.count(phase) for phase in range(max(phases, default=-1) + 1)]


def prepare(config: RunConfig) -> Prepared:
    """Read the data of a recipe and check it against the model.

    Raises:
        UserError: settings, model, data or lengths cannot be used; with key, value and way out.
    """
    check_sources_differ(config.data)
    _check_storage(config.checkpoint.storage)
    notes = check_effects(config)
    model_path = folder_or_hub_id(config.model.path, key="model.path")
    check_model(config, model_path)
    prompt = ChatPrompt(load_tokenizer(model_path, trust_remote_code=config.model.trust_remote_code))
    data = _Data(config, prompt)
    tasks = data.tasks()
    demonstrations = data.demonstrations(room=_room(config, model_path))
    heldout = data.heldout()
    sources = {task.data_source for group in (tasks, *heldout.tasks.values()) for task in group}
    notes += notes_on_data(config, sources, 0 if demonstrations is None else len(demonstrations))
    if note := note_on_truths(tasks, config.reward, key="data.train"):
        notes.append(note)
    return Prepared(
        model_path=model_path,
        prompt=prompt,
        tasks=tasks,
        demonstrations=demonstrations,
        heldout=heldout,
        rejects=data.rejects,
        notes=(*notes, *data.leaks.notes()),
        inputs={"model.path": model_digest(model_path), **data.digests},
    )


class _Data:
    """The sets of a recipe, read in the order in which leaks are looked for: the held-out one last."""

    def __init__(self, config: RunConfig, prompt: ChatPrompt) -> None:
        self._config = config
        self._prompt = prompt
        self._form: dict[str, Any] = {
            "encoder": prompt,
            "phase_limits": [phase.max_prompt_tokens for phase in config.curriculum.phases],
            "over_long": config.data.over_long,
            "is_payable": payable_filter(config),
            "form": config.data,
        }
        self.leaks = LeakWatch()
        self.rejects: dict[str, tuple[Reject, ...]] = {}
        self.digests: dict[str, str] = {}

    def tasks(self) -> tuple[Task, ...]:
        """Read the questions that are trained on."""
        source = self._config.data.train
        if source is None or not self._config.curriculum.phases:
            return ()
        return self._kept("data.train", load_tasks(source, **self._form, seen=self.leaks.train))

    def demonstrations(self, *, room: int) -> DemonstrationBatches | None:
        """Read the demonstrations of the warm-up, of at most `room` tokens."""
        source, sft = self._config.data.sft, self._config.sft
        if source is None or not sft.epochs:
            return None
        found = load_demonstrations(
            source,
            encoder=self._prompt,
            max_tokens=room,
            judge_prompt=_judge_prompt,
            form=self._config.data,
            seen=self.leaks.sft,
        )
        records = self._kept("data.sft", found)
        return DemonstrationBatches(records, batch_size=sft.batch_size, epochs=sft.epochs, seed=self._config.seed)

    def heldout(self) -> HeldOutSet:
        """Read the held-out questions."""
        source = self._config.data.evaluation
        if source is None or not self._config.curriculum.phases:
            return HeldOutSet()
        found = load_questions(source, **self._form, seen=self.leaks.held_out)
        return heldout_set(self._config, self._kept("data.evaluation", found), self._prompt)

    def _kept(self, key: str, found: Loaded[_Record]) -> tuple[_Record, ...]:
        self.rejects[key], self.digests[key] = found.rejects, found.digest
        return found.records


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
            "curriculum.phases or rollout.max_response_tokens, or extend the model's rope with model.yarn"
        )
    budget = config.learner.max_tokens_per_microbatch
    if longest > budget:
        raise UserError(
            f"learner.max_tokens_per_microbatch={budget}: {lengths} exceed it; raise it to at least {longest}"
        )
    check_folder(model_path, key="model.path")
    check_shape(config, model_path)
    _check_weights(model_path, "model.path")
    if Path(model_path).is_dir():
        weight_files(Path(model_path), name=f"model.path={model_path!r}")
    if isinstance(config.reward.judge, VllmJudge):
        key = "reward.judge.model"
        _check_weights(folder_or_hub_id(config.reward.judge.model, key=key), key)


def _check_storage(url: str | None) -> None:
    """Check that what a storage needs is installed here; the nodes write there before they load a model."""
    if url is not None:
        try:
            _ = SharedFolder(url).path
        except UserError as error:
            raise UserError(f"checkpoint.storage={error}") from error


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
    model = config.model
    positions = context_length(model_path, key="model.path", trust_remote_code=model.trust_remote_code, yarn=model.yarn)
    if positions is None:
        raise UserError(f"model.path={config.model.path!r}: config.json has no max_position_embeddings; add it")
    return positions


def _room(config: RunConfig, model_path: str) -> int:
    """Return the longest row that learner and model take, in tokens."""
    return min(config.learner.max_tokens_per_microbatch, _max_positions(config, model_path))
