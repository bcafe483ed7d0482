"""The recipe: one strict model that describes a whole run."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from actors.config import RolloutConfig, YarnConfig
from cluster.recipe.shared_gpus import check_sharing
from curriculum.config import MAX_SEED, CurriculumConfig, DataConfig, Seconds, StrictModel
from curriculum.controls import Control
from learner.config import LearnerConfig, SftConfig
from reward.config import RewardConfig


class ModelConfig(StrictModel):
    """The base model."""

    path: str
    """Model folder in Hugging Face format, or hub id."""
    trust_remote_code: bool = False
    """Whether to run code that comes with the model."""
    yarn: YarnConfig | None = None
    """YaRN on the rope of the model: for learner, engines, evaluations, exported models, and a judge that is the same
    model. None: the rope as the folder has it."""


class KeepConfig(StrictModel):
    """Which checkpoints stay, and which of them leave a model."""

    last: int = Field(default=2, gt=0)
    """Number of newest checkpoints that are kept; older ones are removed, but for those of the next two keys."""
    stages: bool = True
    """Whether the checkpoints at the ends of the warm-up and of every phase are kept for good, and their models
    exported: `models/sft`, `models/NAME_OF_PHASE`."""
    best: str | None = None
    """A `heldout/` metric. The checkpoint of the step with its highest value is kept, and its model exported as
    `models/best`."""


class CheckpointConfig(StrictModel):
    """When the run is saved; it is also saved at the end of every stage."""

    every_steps: int = Field(default=5, gt=0)
    """Training steps from one checkpoint to the next, counted over all stages."""
    keep: KeepConfig = KeepConfig()
    storage: str | None = None
    """URL of a folder in a storage (`s3://…`, `gs://…`, any of fsspec) where the ranks of the learner put checkpoints
    and the reference policy, for a cluster without a folder that every node sees; None for the run folder."""

    @field_validator("storage")
    @classmethod
    def _is_a_place_for_all(cls, storage: str | None) -> str | None:
        if storage is None:
            return None
        scheme, _, place = storage.partition("://")
        if not scheme.isalnum() or not place.strip("/") or "::" in storage:
            raise ValueError(
                f"checkpoint.storage={storage!r}: no URL of a folder in a storage; give one such as s3://BUCKET/FOLDER"
            )
        if "@" in place.partition("/")[0]:
            raise ValueError("checkpoint.storage: holds a user or a secret; leave it to the environment of the nodes")
        if scheme == "memory":
            raise ValueError(f"checkpoint.storage={storage!r}: is seen by one process alone; give another storage")
        return storage.rstrip("/")


class EvaluationConfig(StrictModel):
    """How `data.evaluation` is asked: before the training, at the end of every stage, and in between."""

    every_steps: int = Field(default=0, ge=0)
    """Training steps from one evaluation to the next, counted over all stages; 0 for the ends of stages only."""
    num_samples: int = Field(default=1, gt=0, le=64)
    """Answers to each question: the n of avg@n and pass@k."""
    control: tuple[Control, ...] = ()
    """How the questions are asked besides, before the training and at the ends of stages, to see whether the model
    reads: without their documents, or with those of others."""

    @model_validator(mode="after")
    def _controls_differ(self) -> Self:
        if len(set(self.control)) < len(self.control):
            raise ValueError(f"evaluation.control=[{', '.join(self.control)}] names one twice; leave it out")
        return self


class ClusterConfig(StrictModel):
    """Where the processes run and how often they may fail."""

    address: Literal["auto", "local"] = "auto"
    """`auto` joins the Ray of RAY_ADDRESS or of this user's `ray start` on this machine, and starts one if there is
    none; `local` always starts one, unless RAY_ADDRESS is set."""
    dashboard_port: int | None = Field(default=None, gt=0, lt=65536)
    """Port of the dashboard of a Ray that this command starts; None takes the first free one, starting at 8265."""
    object_store_bytes: int | None = Field(default=None, ge=75 << 20, lt=2**50)
    """Size of the object store of a Ray that this command starts, in bytes, at least 75 MiB; None lets Ray choose."""
    max_actor_restarts: int = Field(default=3, ge=0)
    """How often each rollout and judge actor may be restarted before it counts as lost."""
    share_gpus: Literal["none", "judge", "all"] = "none"
    """Who lives on the GPU of an engine. `none`: the engine alone. `judge`: judge j beside engine j. `all`: rank r of
    the learner as well, which takes turns with engine r: it sleeps while the learner works. The judge's share,
    `reward.judge.gpu_memory_utilization`, is taken out of `rollout.engine.gpu_memory_utilization`."""
    startup_timeout_s: Seconds = 900.0
    """Longest wait for an actor to load its model, in seconds."""
    max_run_restarts: int = Field(default=3, ge=0)
    """How often the whole run may go on from its last checkpoint by itself, after the death of a learner rank, of the
    coordinator or of a node."""
    notice_s: float = Field(default=30.0, gt=0)
    """Seconds without an answer or progress after which a line says who waits for whom; again at doubling intervals."""
    standstill_s: float = Field(default=480.0, gt=0)
    """Seconds without an answer or progress after which an actor is killed, and so restarted; not for loading or
    writing a model, which have `startup_timeout_s` if that is longer. Below `rollout.sync.timeout_s` a frozen engine is
    replaced before the weight update gives up."""
    orphan_s: float = Field(default=120.0, gt=0)
    """Seconds without a sign of the driver after which an actor ends itself and frees its GPU."""

    @model_validator(mode="after")
    def _notice_comes_first(self) -> Self:
        if self.standstill_s <= self.notice_s:
            raise ValueError(
                f"cluster.standstill_s={self.standstill_s:g} is not above cluster.notice_s={self.notice_s:g}; raise it"
            )
        return self


class TrackingConfig(StrictModel):
    """Weights & Biases; offline unless WANDB_API_KEY is set."""

    wandb: bool = True
    """Whether metrics go to Weights & Biases."""


class GuardConfig(StrictModel):
    """A threshold of a metric, and what happens beyond it."""

    metric: str
    """Key of the metric, as in docs/metrics.md."""
    above: float | None = None
    """The guard is met above this value; with `below` outside the range from `below` to `above`."""
    below: float | None = None
    """The guard is met below this value."""
    steps: int = Field(default=1, gt=0)
    """Steps in a row in which it must be met; steps without a value of the metric do not count."""
    action: Literal["warn", "skip", "roll_back", "stop"] = "warn"
    """`warn`: a line and an event; `skip`: the update of the step is left out; `roll_back`: the learner goes back to
    the last good checkpoint, the curriculum goes on; `stop`: the run ends."""

    @model_validator(mode="after")
    def _has_a_threshold(self) -> Self:
        if self.above is None and self.below is None:
            raise ValueError(f"metric={self.metric} has no threshold; set above, below or both")
        if self.above is not None and self.below is not None and self.above < self.below:
            raise ValueError(f"above={self.above:g} is less than below={self.below:g}: always met; exchange them")
        return self

    @property
    def bound(self) -> str:
        """The threshold in words."""
        bounds = [("above", self.above), ("below", self.below)]
        return " or ".join(f"{name} {value:g}" for name, value in bounds if value is not None)

    def is_beyond(self, value: float) -> bool:
        """Return whether a value meets the guard."""
        return (self.above is not None and value > self.above) or (self.below is not None and value < self.below)

    def __str__(self) -> str:
        return f"{self.metric} {self.bound} in {self.steps}: {self.action}"


DEFAULT_GUARDS = (
    GuardConfig(metric="learner/kl_to_reference", above=1.0, steps=3),
    GuardConfig(metric="learner/rollout_logprob_gap_mean", above=0.5, steps=3),
    GuardConfig(metric="learner/entropy", below=0.005, steps=10),
    GuardConfig(metric="reward/mean", above=0.999, steps=5),
    GuardConfig(metric="rollout/truncated_share", above=0.5, steps=5),
)
"""They only warn: of a policy that leaves its reference or its sampler, of one that explores no more, of rewards that
all are 1, and of answers that run away."""


class RunConfig(StrictModel):
    """A run from the base model to the trained one."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run; the run folder is called after it."""
    seed: int = Field(default=0, ge=0)
    """Seed of every random number of the run."""
    device: Literal["cpu", "cuda"] = "cuda"
    """Where engines and learner run."""
    model: ModelConfig
    data: DataConfig
    sft: SftConfig = SftConfig()
    curriculum: CurriculumConfig = CurriculumConfig()
    groups_per_batch: int = Field(default=128, gt=0, le=65536)
    """Groups (prompts with their answers) of one training step."""
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig = RewardConfig()
    learner: LearnerConfig = LearnerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    cluster: ClusterConfig = ClusterConfig()
    tracking: TrackingConfig = TrackingConfig()
    guards: tuple[GuardConfig, ...] = DEFAULT_GUARDS
    """Rules that watch the metrics; a list in a recipe replaces the default, `[]` watches nothing."""

    @property
    def max_prompt_tokens(self) -> int:
        """Longest prompt of any phase."""
        return max((phase.max_prompt_tokens for phase in self.curriculum.phases), default=0)

    @property
    def max_response_tokens(self) -> int:
        """Longest response of any phase."""
        limits = [phase.max_response_tokens or self.rollout.max_response_tokens for phase in self.curriculum.phases]
        return max(limits, default=self.rollout.max_response_tokens)

    @property
    def max_model_len(self) -> int:
        """Longest sequence that engines and learner must hold."""
        return self.max_prompt_tokens + self.max_response_tokens

    @property
    def weight_transport(self) -> Literal["host_memory", "collective"]:
        """How new weights get to the engines; with `rollout.sync.delta` or on shared GPUs through host memory."""
        sync = self.rollout.sync
        if sync.transport != "auto":
            return sync.transport
        is_host_memory = self.device == "cpu" or sync.delta or self.cluster.share_gpus == "all"
        return "host_memory" if is_host_memory else "collective"

    @model_validator(mode="after")
    def _gpus_can_be_shared(self) -> Self:
        check_sharing(self)
        return self

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if self.sft.epochs and self.data.sft is None:
            raise ValueError("sft.epochs > 0 but data.sft is empty; give data.sft a file or set sft.epochs=0")
        if self.curriculum.phases and self.data.train is None:
            raise ValueError("curriculum.phases has phases but data.train is empty; give data.train a file or hub id")
        if not self.curriculum.phases and not self.sft.epochs:
            raise ValueError("curriculum.phases is empty and sft.epochs is 0: nothing to train; set one of them")
        if self.rollout.max_policy_lag and self.learner.importance is None:
            raise ValueError(
                f"rollout.max_policy_lag={self.rollout.max_policy_lag} but learner.importance is empty: the loss "
                "would treat answers of older weights as answers of the learner; set learner.importance={cap: 2.0}"
            )
        if self.seed + self.rollout.num_actors - 1 > MAX_SEED:
            raise ValueError(
                f"seed={self.seed}: engine i is started with seed + i, and the largest seed is {MAX_SEED}; lower it"
            )
        if self.device == "cpu" and self.rollout.engine.tensor_parallel_size > 1:
            raise ValueError(
                f"rollout.engine.tensor_parallel_size={self.rollout.engine.tensor_parallel_size} but device=cpu, where "
                "an engine is one process; set it to 1"
            )
        if self.groups_per_batch % self.learner.mini_batches:
            raise ValueError(
                f"groups_per_batch={self.groups_per_batch} is not a multiple of "
                f"learner.mini_batches={self.learner.mini_batches}; change one of them"
            )
        return self
