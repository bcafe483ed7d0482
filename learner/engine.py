"""One rank of the ZeRO-3 learner: warm-up, reinforcement learning, export of weights, checkpoints.

Every method is collective: all ranks call it in the same order with the same arguments, or their share of them.
Consumes: demonstrations or planned groups.  Waits for: the other ranks, in every call.
Unblocked by: all ranks making the same call.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.config import YarnConfig
from actors.model_folder import config_overrides
from curriculum.digest import FileDigest
from curriculum.errors import RunFailed
from curriculum.shared_folder import SharedFolder
from curriculum.task import Demonstration
from learner.attention.kernels import use_kernel
from learner.batch.aggregation import Aggregation, normaliser_share
from learner.batch.microbatch import TrainingGroup
from learner.batch.packing import PLACEHOLDER, SlicePlan, plan_slice, unshare
from learner.batch.rows import build_microbatch, demonstration_group, single_row
from learner.collectives import together
from learner.config import LearnerConfig
from learner.forward import sharing_check
from learner.forward.logprobs import TokenLoss, TokenScores
from learner.forward.row_tensors import RowTensors, to_device
from learner.forward.running_batch import MiniBatch, MiniBatchPart, RunningBatch
from learner.objective.objective import PolicyLoss, SftLoss, policy_loss
from learner.objective.settings import aggregation_of, objective_of, torch_dtype
from learner.objective.step_sums import StepAccumulator
from learner.reports import SftReport, StepReport
from learner.rounding import TextScores
from learner.weights.finite import check_finite, is_finite
from learner.weights.sender import WeightSource
from learner.zero3 import building, checkpoint
from learner.zero3.config import zero3_config, zero3_frozen_config
from learner.zero3.model_folder import MAX_FILE_BYTES, write_order
from learner.zero3.policy import Policy, load_policy

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

_torch: Any = torch  # where its declarations have no complete types

SFT_WEIGHT_DECAY = 0.01
"""Weight decay of AdamW in the warm-up."""
MAX_NONFINITE_UPDATES = 3
"""Updates in a row with a non-finite loss or gradient that are skipped before the run stops."""

_Item = TypeVar("_Item")
_Report = TypeVar("_Report", SftReport, StepReport)


class Stage(StrEnum):
    """Stage of training; each has an optimizer of its own."""

    SFT = "sft"
    RL = "rl"


class LearnerEngine:
    """A DeepSpeed ZeRO-3 rank around one policy."""

    def __init__(
        self,
        config: LearnerConfig,
        model_path: str,
        *,
        rank: int,
        world_size: int,
        seed: int,
        on_gpu: bool = False,
        trust_remote_code: bool = False,
        yarn: YarnConfig | None = None,
    ) -> None:
        """Join the process group and load the model; call `start_stage` before the first step.

        Args:
            config: the learner's configuration.
            model_path: Hugging Face folder or hub id of the model to start from.
            rank: this rank, 0 to world_size - 1.
            world_size: must equal `config.num_ranks`.
            seed: of the run; each rank derives its own.
            on_gpu: use the GPU of LOCAL_RANK and NCCL, else the CPU and gloo.
            trust_remote_code: run model code from the folder or hub.
            yarn: put on the rope of the model.

        MASTER_ADDR and MASTER_PORT (and LOCAL_RANK on a machine with several GPUs) are read from the environment.

        Raises:
            ValueError: `world_size` differs from `config.num_ranks`.
        """
        if world_size != config.num_ranks:
            raise ValueError(f"learner.num_ranks={config.num_ranks} but world_size={world_size}; start as many ranks")
        self._config = config
        self._model_path = model_path
        self._on_gpu = on_gpu
        self._trust_remote_code = trust_remote_code
        self._yarn = yarn
        self._rank = rank
        self._world_size = world_size
        self._stage: Stage | None = None
        self._skipped_in_a_row = 0
        self._num_steps = 0
        self._device = building.join_process_group(rank, world_size, on_gpu)
        use_kernel(config.attention, self._device, torch_dtype(config))
        _torch.manual_seed(seed + rank)
        settings = zero3_config(config, on_gpu=on_gpu)
        self._policy = self._load(model_path, settings)
        self._placement = building.place(config, self._policy, self._device, rank=rank)
        self._sharing = building.supports_sharing(config, self._policy, self._device)
        self._sharing_failed = False
        self._engine = building.trained_engine(self._policy, settings)
        self._reference: DeepSpeedEngine | None = None
        self._batch = RunningBatch()
        self._sums = StepAccumulator(self._device)

    # stages ------------------------------------------------------------------------------------------------------

    def start_stage(self, stage: Stage, *, reference_path: str | None = None) -> None:
        """Begin the warm-up or the reinforcement learning with a fresh optimizer.

        Moments and step count restart, the weight decay becomes that of the stage. All phases of the curriculum belong
        to the stage RL: between them the optimizer keeps its state.

        Args:
            stage: the stage that begins, or begins again from a checkpoint; the reference stays then.
            reference_path: model against which the KL is measured, if `kl_coefficient` or `kl_every` is set; None for
                the model that the engine was started with.
        """
        weight_decay = SFT_WEIGHT_DECAY if stage is Stage.SFT else self._config.weight_decay
        base: torch.optim.Optimizer = self._zero_optimizer.optimizer
        base.state.clear()
        for group in base.param_groups:
            group.update(betas=self._config.betas, weight_decay=weight_decay)
        self._stage = stage
        if self.loads_reference(stage):
            settings = zero3_frozen_config(self._config, on_gpu=self._on_gpu)
            reference = self._load(reference_path or self._model_path, settings)
            self._reference = building.frozen_engine(reference, settings)

    def loads_reference(self, stage: Stage) -> bool:
        """Return whether `start_stage` reads the reference; it stays from then on."""
        return stage is Stage.RL and self._config.needs_reference and self._reference is None

    def sft_step(self, demonstrations: Sequence[Demonstration], *, learning_rate: float) -> SftReport:
        """Make one update on the length-normalised NLL of the responses (paper Eq. 11).

        Args:
            demonstrations: the whole batch, the same on every rank; each rank forwards its share.
            learning_rate: of this update.

        Raises:
            RunFailed: more than `MAX_NONFINITE_UPDATES` updates in a row were skipped.
            ValueError: no demonstrations, or one beyond `learner.max_tokens_per_microbatch`.
        """
        self._expect(Stage.SFT)
        groups = {index: demonstration_group(item) for index, item in enumerate(demonstrations)}
        plan = plan_slice(
            list(groups.values()),
            num_ranks=self._config.num_data_ranks,
            max_tokens=self._config.max_tokens_per_microbatch,
        )
        for row, is_last in _with_last(self._rows(plan, groups, num_groups=len(groups))):
            self._row_backward(row, None, is_last=is_last)
        self._step(learning_rate)
        return self._report(SftReport, learning_rate=learning_rate)

    def accumulate(self, plan: SlicePlan, groups: Mapping[int, TrainingGroup], part: MiniBatchPart) -> None:
        """Add the next groups to the running batch.

        Groups of the first mini-batch are forwarded and back-propagated now: the old policy is the current one, so
        every ratio is 1. For groups of the later ones only the log-probabilities before the first update are computed
        now; the rest waits for `update`.

        Args:
            plan: `plan_slice` over the lengths of the groups, the same on every rank.
            groups: at least the groups `groups_of(plan, rank)`, by index in the plan.
            part: the place of the groups in the batch.

        Raises:
            ValueError: other groups of the batch come before these.
        """
        self._expect(Stage.RL)
        if not self._batch.num_groups and self._sharing and self._num_steps < sharing_check.CHECKED_STEPS:
            self._check_sharing(plan, groups)
        mini_batch = self._batch.add(part)
        rows = self._rows(plan, groups, num_groups=part.mini_batch_groups)
        if part.mini_batch > 0:
            mini_batch.rows += [(row, self._old_scores(row)) for row in rows]
        else:
            for row, is_last in _with_last(rows):
                old = self._old_scores(row) if self._needs_old_scores else None
                self._row_backward(row, old, is_last=is_last and part.is_last)

    def update(self, *, learning_rate: float) -> StepReport:
        """End the running batch: make one optimizer update per mini-batch.

        The loss of a batch that ended early is normalised by the groups that came.

        Args:
            learning_rate: of all updates of the step.

        Raises:
            RuntimeError: no groups came.
            RunFailed: more than `MAX_NONFINITE_UPDATES` updates in a row were skipped.
        """
        self._expect(Stage.RL)
        batch, self._batch = self._batch, RunningBatch()
        if not batch.mini_batches:
            raise RuntimeError("no groups to train on; skip the step")
        for mini_batch in batch.mini_batches:
            for (row, old), is_last in _with_last(mini_batch.rows):
                self._row_backward(row, old, is_last=is_last)
            if not mini_batch.rows and mini_batch.is_short:
                self._end_accumulation()
            self._step(learning_rate, share=self._share(mini_batch))
        report = self._report(StepReport, learning_rate=learning_rate, prompt_sharing=self._sharing)
        self._num_steps += 1
        return report

    def preview(self) -> StepReport:
        """Return what is known of the running batch before its first update: the fields of `KNOWN_BEFORE_UPDATE`."""
        return self._sums.preview(StepReport, learning_rate=math.nan, prompt_sharing=self._sharing)

    def drop(self) -> None:
        """Forget the running batch: no update is made, and weights and optimizer stay as they are.

        A gradient that is not a number makes every rank discard what it has accumulated, as in any update of that kind.
        """
        self._expect(Stage.RL)
        self._batch = RunningBatch()
        self._end_accumulation(scale=math.nan)
        self._engine.step()
        if self._engine.was_step_applied():
            raise RuntimeError("the update was to be left out, but DeepSpeed made it; report it")
        self._sums = StepAccumulator(self._device)

    def rest(self) -> None:
        """Give the device everything back but this rank's partition of weights, optimizer and gradients.

        Nothing may be accumulated; numbers do not change.
        """
        for engine in (self._engine, self._reference):
            if engine is not None:
                engine.empty_partition_cache()

    @property
    def num_accumulated(self) -> int:
        """Groups of the running batch that came."""
        return self._batch.num_groups

    # full weights ------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Device of this rank."""
        return self._device

    @property
    def weights(self) -> WeightSource:
        """Full weights, gathered on every rank while they are iterated over."""
        return WeightSource(self._policy.causal_lm)

    def gather_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield full weights as (Hugging Face name, CPU tensor), always in the same order, tied weights once.

        Every rank must run the iterator to its end; only rank 0 receives the tensors, the others get nothing.
        """
        for name, weight in self.weights:
            if self._rank == 0:
                yield name, weight.to("cpu", copy=True)

    def score(self, token_ids: NDArray[np.int32]) -> TextScores:
        """Score each of the T tokens but the first, at temperature 1."""
        row = to_device(single_row(token_ids), self._placement, dense=not self._sharing)
        return sharing_check.text_scores(row, self._scores(self._engine, row), self._placement)

    def export(self, directory: Path, *, max_file_bytes: int = MAX_FILE_BYTES) -> None:
        """Write a Hugging Face folder (safetensors, configuration, tokenizer) that transformers and vLLM load.

        Rank 0 writes under a temporary name and renames it; an earlier folder of that name is replaced. It holds one
        gathered tensor on its device, and in host memory those of one file.

        Args:
            directory: the folder.
            max_file_bytes: size of a file of weights, the same on every rank.

        Raises:
            NonFiniteWeights: some are no finite numbers.
            UserError: the folder cannot be written; like any error of rank 0, on every rank.
        """
        shapes = self.weights.without_values()
        weights = self.weights.one_by_one(write_order(shapes, max_file_bytes=max_file_bytes))

        def read(wanted: str) -> Tensor:
            name, weight = next(weights)
            assert name == wanted, "all ranks gather in the order in which rank 0 writes"
            check_finite([] if is_finite(weight) else [name], where="export")
            return weight.to("cpu", copy=True)

        def write() -> None:
            try:
                if self._rank == 0:
                    base, overrides = self._model_path, self._overrides(self._model_path)
                    self._policy.write(directory, shapes, read, base, overrides, max_file_bytes=max_file_bytes)
            finally:
                for _ in weights:  # the other ranks gather all of them
                    pass

        together(write)

    # checkpoints -------------------------------------------------------------------------------------------------

    def save(self, place: SharedFolder) -> dict[str, FileDigest]:
        """Write this rank's part of a checkpoint; return what it wrote; see `learner.zero3.checkpoint`."""
        state = checkpoint.LearnerState(num_steps=self._num_steps, sharing_failed=self._sharing_failed)
        return checkpoint.save(self._engine, place, manifest=self._manifest(), state=state)

    def load(self, place: SharedFolder) -> None:
        """Restore weights, optimizer and random state; call `start_stage` with the stage of the checkpoint before.

        Raises:
            UserError: the checkpoint is missing or incomplete, or belongs to another version, stage, dtype or model.
        """
        state = checkpoint.load(self._engine, place, manifest=self._manifest())
        self._num_steps = state.num_steps
        if state.sharing_failed:
            self._share_no_prompts()

    def close(self) -> None:
        """Leave the process group; the engine cannot be used afterwards."""
        import torch.distributed as dist

        dist.destroy_process_group()

    # one update --------------------------------------------------------------------------------------------------

    def _step(self, learning_rate: float, *, share: float = 1.0) -> None:
        """Make one optimizer step with the accumulated gradients; skip it on all ranks if they are not finite.

        The gradients are divided by `share`: DeepSpeed divides them by the loss scale before the step.
        """
        zero = self._zero_optimizer
        for group in zero.param_groups:
            group["lr"] = learning_rate
        zero.loss_scale = share
        self._engine.step()
        zero.loss_scale = 1.0
        applied = self._engine.was_step_applied()
        self._sums.close_update(float(zero._global_grad_norm) if applied else None, share=share)
        self._count_skipped(applied)

    def _share(self, mini_batch: MiniBatch) -> float:
        """Return what the gradients of a mini-batch are to be divided by, see `normaliser_share`. Collective."""
        return normaliser_share(
            self._aggregation(),
            num_groups=mini_batch.num_groups,
            max_groups=mini_batch.max_groups,
            num_tokens=self._sums.num_tokens,
        )

    def _end_accumulation(self, *, scale: float = 1.0) -> None:
        """Back-propagate a row with weight zero as the last one: DeepSpeed ends an accumulation in a backward pass."""
        plain = build_microbatch(PLACEHOLDER, {}, num_groups=1, aggregation=self._aggregation())
        row = to_device(plain, self._placement, dense=not self._sharing)
        total, *_ = self._engine(row, SftLoss(row))
        self._backward(total * scale, is_last=True)

    def _report(self, kind: type[_Report], **known: Any) -> _Report:
        """Return the report of the step and begin new sums; `known` are the fields not computed from rows."""
        sums, self._sums = self._sums, StepAccumulator(self._device)
        return sums.report(kind, **known)

    def _row_backward(self, row: RowTensors, old: TokenScores | None, *, is_last: bool) -> None:
        """Compute the gradients of the row's share of the loss of the mini-batch, and count the row."""
        loss = self._loss(row, old)
        total, *columns = self._engine(row, loss)
        self._backward(total * self._world_size, is_last=is_last)  # ZeRO-3 averages over the ranks, the loss is a sum
        self._count_row(row, total, TokenScores(*columns), loss, is_first_pass=old is None)

    def _backward(self, scalar: Tensor, *, is_last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(is_last)
        self._engine.backward(scalar)

    def _loss(self, row: RowTensors, old: TokenScores | None) -> TokenLoss:
        """Return the loss of the row; `old` are its scores before the first update, None where that is now."""
        if self._stage is Stage.SFT:
            return SftLoss(row)
        reference = self._scores(self._reference, row) if self._reference and self._reference_due() else None
        return policy_loss(
            row,
            objective_of(self._config),
            old=old,
            reference_N=None if reference is None else reference.logprobs_N,
            add_up=self._placement.add_up,
        )

    def _count_row(
        self, row: RowTensors, total: Tensor, scores: TokenScores, loss: TokenLoss, *, is_first_pass: bool
    ) -> None:
        """Add a row to the sums; on its first pass, compare it with the sampler's log-probabilities as well."""
        if not isinstance(loss, PolicyLoss):
            self._sums.add_row(row, scores, total)
            return
        self._sums.add_row(row, scores, total, loss.sums)
        if is_first_pass:
            self._sums.add_gap(row, scores)

    def _reference_due(self) -> bool:
        """Return whether this step measures the KL: always if it is in the loss, else every `kl_every` steps."""
        if self._reference is None:
            return False
        return self._config.kl_coefficient > 0 or self._num_steps % self._config.kl_every == 0

    def _scores(self, engine: DeepSpeedEngine, row: RowTensors) -> TokenScores:
        """Return the scores of the row, without gradient."""
        with torch.no_grad():
            return TokenScores(*engine(row)[1:])

    def _old_scores(self, row: RowTensors) -> TokenScores:
        """Return the scores before the first update of the batch, and compare them with the sampler's."""
        scores = self._scores(self._engine, row)
        self._sums.add_gap(row, scores)
        return scores

    def _check_sharing(self, plan: SlicePlan, groups: Mapping[int, TrainingGroup]) -> None:
        """Compare the shared prompt with the dense path on one group per rank; if any differs, share no prompts."""
        first = plan[self._data_rank][0]
        shared = to_device(sharing_check.shared_row(first, groups), self._placement)
        dense = to_device(sharing_check.dense_row(first, groups), self._placement, dense=True)
        gap = sharing_check.mean_gap(
            (shared, self._scores(self._engine, shared)),
            (dense, self._scores(self._engine, dense)),
            self._placement,
            self._config.dtype,
        )
        if not sharing_check.is_rounding(gap):
            self._share_no_prompts()

    def _share_no_prompts(self) -> None:
        self._sharing, self._sharing_failed = False, True

    def _count_skipped(self, applied: bool) -> None:
        self._skipped_in_a_row = 0 if applied else self._skipped_in_a_row + 1
        if self._skipped_in_a_row > MAX_NONFINITE_UPDATES:
            non_finite = [name for name, weight in self.weights if not is_finite(weight)]
            check_finite(non_finite, where=f"{self._skipped_in_a_row} updates in a row had a non-finite gradient")
            key = "sft.learning_rate" if self._stage is Stage.SFT else "learner.learning_rate"
            raise RunFailed(
                f"{self._skipped_in_a_row} updates in a row had a non-finite gradient, more than "
                f"{MAX_NONFINITE_UPDATES}; lower {key}, then go on with --resume and --allow-change {key}"
            )

    def _rows(self, plan: SlicePlan, groups: Mapping[int, TrainingGroup], *, num_groups: int) -> list[RowTensors]:
        """Return the rows of this rank; `num_groups` is the normaliser of the loss."""
        rows = (plan if self._sharing else unshare(plan))[self._data_rank]
        return [
            to_device(
                build_microbatch(row, groups, num_groups=num_groups, aggregation=self._aggregation()),
                self._placement,
                dense=not self._sharing,
            )
            for row in rows
        ]

    def _aggregation(self) -> Aggregation:
        return aggregation_of(self._config, warm_up=self._stage is Stage.SFT)

    @property
    def _needs_old_scores(self) -> bool:
        """Whether even the first mini-batch must be scored before its backward pass."""
        return self._config.importance is not None and self._config.importance.max_answer_ratio is not None

    @property
    def _data_rank(self) -> int:
        """Index of this rank's row in every step of a plan; ranks that share a row have the same."""
        return self._rank // self._config.sequence_parallel

    @property
    def _zero_optimizer(self) -> Any:
        """DeepSpeed's optimizer around ours; its type depends on the configuration."""
        return self._engine.optimizer

    def _expect(self, stage: Stage) -> None:
        if self._stage is not stage:
            raise RuntimeError(f"the learner is in stage {self._stage}; call start_stage({stage!r}) first")

    def _load(self, model_path: str, settings: dict[str, Any]) -> Policy:
        policy = load_policy(
            model_path,
            dtype=torch_dtype(self._config),
            recompute=self._config.gradient_checkpointing,
            offload="activations" in self._config.offload,
            trust_remote_code=self._trust_remote_code,
            overrides=self._overrides(model_path),
            take=building.take_part(settings, self._device),
        )
        return policy.to(self._device)

    def _overrides(self, model_path: str) -> dict[str, Any]:
        return config_overrides(model_path, self._yarn, trust_remote_code=self._trust_remote_code)

    def _manifest(self) -> dict[str, Any]:
        return {"stage": str(self._stage), "dtype": self._config.dtype}


def _with_last(items: Sequence[_Item]) -> Iterator[tuple[_Item, bool]]:
    """Return an iterator over the items, each with whether it is the last one."""
    return ((item, index == len(items) - 1) for index, item in enumerate(items))
