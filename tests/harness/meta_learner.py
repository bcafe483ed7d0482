"""The learner's own update on the meta device, where tensors have shapes and no values.

Nothing of the learner is replaced: policy, attention (its branch for GPUs, which every device takes that is not the
CPU), head, loss, parts and sequence parallelism run as they are, with the shapes of real models, in seconds. Only the
process group does nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from learner.attention.shared_prefix import ATTENTION_KEY, register
from learner.attention.ulysses import HeadExchange
from learner.batch.aggregation import TOKEN_MEAN
from learner.batch.microbatch import TrainingGroup
from learner.batch.packing import RowPlan, plan_slice
from learner.batch.rows import build_microbatch
from learner.config import LearnerConfig
from learner.forward import logprobs as head
from learner.forward.logprobs import TokenLoss
from learner.forward.row_tensors import Placement, RowTensors, to_device
from learner.objective.objective import policy_loss
from learner.objective.settings import objective_of
from learner.zero3.policy import Policy
from tests.harness.live_bytes import LiveBytes

META = torch.device("meta")
head.MAX_TILE_LOGITS.setdefault("meta", head.MAX_TILE_LOGITS["cuda"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Shape of a Qwen2 model."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int

    @property
    def num_parameters(self) -> int:
        """Weights, biases and norms included; embedding and head are two matrices."""
        width = self.hidden // self.heads * self.kv_heads
        attention = 2 * self.hidden * self.hidden + 2 * self.hidden * width + self.hidden + 2 * width
        layer = attention + 3 * self.hidden * self.intermediate + 2 * self.hidden
        return self.layers * layer + 2 * self.vocab * self.hidden + self.hidden


SIZES = {
    "1.5B": Size(hidden=1536, intermediate=8960, layers=28, heads=12, kv_heads=2, vocab=151936),
    "7B": Size(hidden=3584, intermediate=18944, layers=28, heads=28, kv_heads=4, vocab=152064),
    "14B": Size(hidden=5120, intermediate=13824, layers=48, heads=40, kv_heads=8, vocab=152064),
    "32B": Size(hidden=5120, intermediate=27648, layers=64, heads=40, kv_heads=8, vocab=152064),
}
"""The R1-Distill-Qwen models that the paper trains, and the sizes between."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One update of one group in bf16."""

    size: Size
    prompt: int
    response: int
    group: int
    parts: bool = False
    """The responses go through the layers one by one."""
    sequence_parallel: int = 1
    checkpointing: bool = True
    offload: bool = False
    """Layer inputs of whole rows lie in host memory; those of rows in parts always do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """Memory of one update, in bytes."""

    weights: int
    """All weights, which are there before the update."""
    with_gradients: int
    """Peak of all else, the gradients of all weights included, as on one card."""
    activations: int
    """Peak of all else without the gradients, which ZeRO-3 divides among the ranks as soon as they are there."""

    @property
    def on_one_card(self) -> int:
        """Peak with all weights and gradients."""
        return self.weights + self.with_gradients


class _Done(dist.Work):
    def wait(self, timeout: Any = None) -> bool:
        return True


class SilentGroup(dist.ProcessGroup):
    """A process group of this rank and others that are not there: what is received has a shape and no values."""

    def __init__(self, size: int) -> None:
        super().__init__(0, size)
        self._size = size

    def size(self) -> int:
        return self._size

    def alltoall_base(self, received: Tensor, sent: Tensor, *_: Any) -> dist.Work:
        assert received.shape == sent.shape
        assert received.is_contiguous()
        assert sent.is_contiguous()
        return _Done()

    def allreduce(self, tensors: list[Tensor], *_: Any) -> dist.Work:
        return _Done()


def placement(sequence_parallel: int) -> Placement:
    """Rank 0 of so many that share a row."""
    exchange = None if sequence_parallel == 1 else HeadExchange(SilentGroup(sequence_parallel), sequence_parallel)
    return Placement(device=META, exchange=exchange)


def meta_policy(size: Size, *, checkpointing: bool = True, offload: bool = False) -> Policy:
    """A Qwen2 in bf16 without values."""
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from transformers.initialization import no_init_weights

    register()
    config = Qwen2Config(
        vocab_size=size.vocab,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=131_072,
        tie_word_embeddings=False,
        attn_implementation=ATTENTION_KEY,
    )
    with no_init_weights(), META:
        model = Qwen2ForCausalLM(config).to(torch.bfloat16)
    return Policy(model, recompute=checkpointing, offload=offload).train()


def make_group(prompt: int, responses: list[int], *, vocab: int = 1000, seed: int = 0) -> TrainingGroup:
    """A group of random tokens."""
    rng = np.random.default_rng(seed)
    return TrainingGroup(
        prompt_ids=rng.integers(vocab, size=prompt, dtype=np.int32),
        response_ids=tuple(rng.integers(vocab, size=length, dtype=np.int32) for length in responses),
        rollout_logprobs=tuple(np.full(length, -1.0, np.float32) for length in responses),
        advantages=tuple(float(a) for a in rng.standard_normal(len(responses))),
        temperature=1.0,
    )


def row_plan(group: TrainingGroup, *, parts: bool) -> RowPlan:
    """The whole group in one row; in parts, its longest response at a time."""
    one_path = group.prompt_tokens + max(group.response_tokens)
    whole = group.prompt_tokens + sum(group.response_tokens)
    plan = plan_slice([group], num_ranks=1, max_tokens=one_path if parts else whole)
    return plan[0][0]


def make_row(group: TrainingGroup, place: Placement, *, parts: bool) -> RowTensors:
    """The row of a group on the device of the placement."""
    plan = row_plan(group, parts=parts)
    return to_device(build_microbatch(plan, {0: group}, num_groups=1, aggregation=TOKEN_MEAN), place)


def loss_of(row: RowTensors, place: Placement) -> TokenLoss:
    """The policy's loss with the default settings."""
    return policy_loss(row, objective_of(LearnerConfig()), old=None, reference_N=None, add_up=place.add_up)


def update(policy: Policy, row: RowTensors, place: Placement) -> None:
    """Forward and backward pass of one row."""
    policy(row, loss_of(row, place))[0].backward()


def measure(case: Case) -> Peak:
    """The peak of one update, weights and gradients in full: ZeRO-3 divides them, activations it does not."""
    policy = meta_policy(case.size, checkpointing=case.checkpointing, offload=case.offload)
    group = make_group(case.prompt, [case.response] * case.group)
    place = placement(case.sequence_parallel)
    with LiveBytes("meta", before=policy.parameters()) as memory:
        for parameter in policy.parameters():
            parameter.register_post_accumulate_grad_hook(lambda p: memory.set_apart(p.grad))
        update(policy, make_row(group, place, parts=case.parts), place)
    return Peak(
        weights=sum(parameter.nbytes for parameter in policy.parameters()),
        with_gradients=memory.peak,
        activations=memory.peak_apart,
    )
