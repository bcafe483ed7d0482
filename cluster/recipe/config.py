"""The recipe: one strict model that describes a whole run."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from actors.config import RolloutConfig
from curriculum.config import MAX_SEED, CurriculumConfig, DataConfig, Seconds, StrictModel
from learner.config import LearnerConfig, SftConfig
from reward.config import RewardConfig


class ModelConfig(StrictModel):
    """The base model."""

    path: str
    """Model folder in Hugging Face format, or hub id."""
    trust_remote_code: bool = False
    """Whether to run code that comes with the model."""


class CheckpointConfig(StrictModel):
    """When the run is saved; it is also saved at the end of every stage."""

    every_steps: int = Field(default=5, gt=0)
    """Training steps from one checkpoint to the next, counted over all stages."""
    keep_last: int = Field(default=2, gt=0)
    """Number of checkpoints that are kept; older ones are removed."""


class ClusterConfig(StrictModel):
    """Where the processes run and how often they may fail."""

    address: Literal["auto", "local"] = "auto"
    """`auto` joins the Ray of RAY_ADDRESS or of `ray start` on this machine, and starts one if there is none;
    `local` always starts one, unless RAY_ADDRESS is set."""
    dashboard_port: int | None = Field(default=None, gt=0, lt=65536)
    """Port of the dashboard of a Ray that this command starts; None takes the first free one, starting at 8265."""
    object_store_bytes: int | None = Field(default=None, ge=75 << 20, lt=2**50)
    """Size of the object store of a Ray that this command starts, in bytes, at least 75 MiB; None lets Ray choose."""
    max_actor_restarts: int = Field(default=3, ge=0)
    """How often each rollout and judge actor may be restarted before it counts as lost."""
    startup_timeout_s: Seconds = 900.0
    """Longest wait for an actor to load its model, in seconds."""


class TrackingConfig(StrictModel):
    """Weights & Biases; offline unless WANDB_API_KEY is set."""

    wandb: bool = True
    """Whether metrics go to Weights & Biases."""


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
    checkpoint: CheckpointConfig = CheckpointConfig()
    cluster: ClusterConfig = ClusterConfig()
    tracking: TrackingConfig = TrackingConfig()

    @property
    def max_prompt_tokens(self) -> int:
        """Longest prompt of any phase."""
        return max((phase.max_prompt_tokens for phase in self.curriculum.phases), default=0)

    @property
    def max_response_tokens(self) -> int:
        """Longest response of any phase."""
        limits = [phase.max_response_tokens or 0 for phase in self.curriculum.phases]
        return max([self.rollout.max_response_tokens, *limits])

    @property
    def max_model_len(self) -> int:
        """Longest sequence that engines and learner must hold."""
        return self.max_prompt_tokens + self.max_response_tokens

    @property
    def weight_transport(self) -> Literal["host_memory", "collective"]:
        """How new weights get to the engines; with `rollout.sync.delta` always through host memory."""
        sync = self.rollout.sync
        if sync.transport != "auto":
            return sync.transport
        return "collective" if self.device == "cuda" and not sync.delta else "host_memory"

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
