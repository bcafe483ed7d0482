"""One update of one group against other people's code, each as it is, on the same weights and tokens.

* TRL 1.16.0: `GRPOTrainer._get_per_token_logps_and_entropies` and `_compute_loss` on a padded batch, with TRL's fused
  head, then one backward pass.
* PrefixGrouper 0.0.1.post1: the prompt once, its attention in place of ours inside our own policy, so that only the
  attention differs.

verl is not among them: the update of its actor needs a CUDA build of flash-attn even where it is not used; its loss is
checked against ours in the tests and its head in `benchmarks.logprobs`.

Peers are no dependency. Install them in an environment of their own, next to torch and transformers:

    pip install --no-deps trl==1.16.0 prefix-grouper==0.0.1.post1 accelerate

and run `python -m benchmarks.peers` there; without them it says so and measures nothing. Every side runs in a process
of its own; seconds are CPU seconds, median of `--repeats` after a warm-up.
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import json
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks.group_update import (
    OBJECTIVE,
    Shape,
    add_shape_options,
    gradient,
    make_group,
    make_model,
    make_policy,
    make_rows,
    shape_of,
    update,
)
from benchmarks.line import Claim, environment, print_line, say
from learner.batch.microbatch import TrainingGroup
from learner.zero3.policy import Policy

GOALS = {"trl": 5.0, "prefix_grouper": 1.15}


def main() -> None:
    """Parse the options, measure, print the line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    add_shape_options(parser)
    parser.add_argument("--side", choices=("all", *SIDES), default="all")
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    if options.side != "all":
        print(json.dumps(measure(options)))
        return
    present = [name for name in GOALS if importlib.util.find_spec(name) is not None]
    for name in GOALS.keys() - set(present):
        say(f"{name} is not installed here and is left out; see the head of benchmarks/peers.py")
    runs = {name: _child(name) for name in (["ours", *present] if present else [])}
    claims = [
        Claim.at_least(
            f"{name}'s CPU time against ours",
            runs[name]["cpu_seconds"] / runs["ours"]["cpu_seconds"],
            "ratio",
            GOALS[name],
        )
        for name in present
    ]
    print_line("peers", claims, {**runs, "missing": sorted(GOALS.keys() - set(present))})


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One side in this process."""
    torch.set_num_threads(options.threads)
    shape = shape_of(options)
    model, run = SIDES[options.side](shape, make_group(shape, options.seed), options.seed)
    seconds, loss = [], 0.0
    for _ in range(options.repeats + 1):
        start = time.process_time()
        loss = run()
        seconds.append(time.process_time() - start)
    return {
        "side": options.side,
        "cpu_seconds": statistics.median(seconds[1:]),
        "repeats": seconds,
        "loss": loss,
        "grad_norm": float(gradient(model).double().norm()),
        "environment": environment("torch", "transformers", "trl", "prefix-grouper"),
    }


Side = tuple[torch.nn.Module, Callable[[], float]]


def _ours(shape: Shape, group: TrainingGroup, seed: int) -> Side:
    policy = make_policy(shape, seed)
    rows = make_rows(group, shared=True)
    return policy, lambda: update(policy, rows)


def _prefix_grouper(shape: Shape, group: TrainingGroup, seed: int) -> Side:
    import prefix_grouper  # pyright: ignore[reportMissingImports]
    from torch.nn.functional import scaled_dot_product_attention
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    grouper = prefix_grouper.PrefixGrouper([[shape.prompt, *shape.responses]], device="cpu")

    longest = max(shape.responses)
    # a response sees the prompt and its own past; what pads it lies behind it
    visible = torch.ones(longest, shape.prompt + longest, dtype=torch.bool).tril(shape.prompt)

    def attend(q: Tensor, k: Tensor, v: Tensor, _padding_mask: Tensor) -> Tensor:
        if q.shape[2] == k.shape[2]:
            return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)
        repeats = q.shape[1] // k.shape[1]  # with a mask no fused kernel groups heads by itself
        k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
        return scaled_dot_product_attention(q, k, v, attn_mask=visible).transpose(1, 2)

    def attention(_: object, q: Tensor, k: Tensor, v: Tensor, *__: object, **___: object) -> tuple[Tensor, None]:
        return grouper.forward(attend, q, k, v), None

    ALL_ATTENTION_FUNCTIONS.register("prefix_grouper", attention)
    policy = Policy(make_model(shape, seed, "prefix_grouper"))  # type: ignore[arg-type]
    rows = make_rows(group, shared=True)
    return policy, lambda: update(policy, rows)


def _trl(shape: Shape, group: TrainingGroup, seed: int) -> Side:
    from trl.trainer.grpo_trainer import GRPOTrainer  # pyright: ignore[reportMissingImports]
    from trl.trainer.utils import add_fused_lm_head  # pyright: ignore[reportMissingImports]

    model = make_model(shape, seed, "sdpa")
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))  # type: ignore[arg-type]
    trainer = _trainer_stand_in(model)
    inputs = _padded_inputs(shape, group)

    def run() -> float:
        model.zero_grad(set_to_none=True)
        loss = GRPOTrainer._compute_loss(trainer, model, inputs)
        loss.backward()
        return loss.item()

    scored = inspect.unwrap(GRPOTrainer._get_per_token_logps_and_entropies)  # without TRL's profiling around it
    trainer._get_per_token_logps_and_entropies = partial(scored, trainer)
    return model, run


def _padded_inputs(shape: Shape, group: TrainingGroup) -> dict[str, Tensor]:
    """The batch as TRL wants it: prompts repeated, responses padded on the right."""
    longest = max(shape.responses)

    def padded(arrays: tuple[Any, ...], dtype: torch.dtype) -> Tensor:
        rows = torch.zeros(len(arrays), longest, dtype=dtype)
        for row, array in zip(rows, arrays, strict=True):
            row[: len(array)] = torch.as_tensor(array)
        return rows

    mask = padded(tuple(torch.ones(n) for n in shape.responses), torch.int64)
    prompts = torch.as_tensor(group.prompt_ids).long().expand(len(shape.responses), -1)
    return {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": padded(group.response_ids, torch.int64),
        "completion_mask": mask,
        "advantages": torch.tensor(group.advantages, dtype=torch.float32),
        "old_per_token_logps": padded(group.rollout_logprobs, torch.float32),
        "num_items_in_batch": mask.sum(),
    }


def _trainer_stand_in(model: torch.nn.Module) -> SimpleNamespace:
    """The attributes that TRL's two methods read; everything else of the trainer has no part in an update."""
    accelerator = SimpleNamespace(
        num_processes=1, sync_gradients=True, autocast=nullcontext, gather=lambda x: x, reduce=lambda x, reduction: x
    )
    return SimpleNamespace(
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
        accelerator=accelerator,
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
        aux_loss_enabled=False,
        beta=0.0,
        current_gradient_accumulation_steps=1,
        epsilon_low=OBJECTIVE.clip_low,
        epsilon_high=OBJECTIVE.clip_high,
        importance_sampling_level="token",
        loss_type="dapo",
        model=model,
        off_policy_mask_threshold=None,
        top_entropy_quantile=1.0,
        use_vllm=False,
        vllm_importance_sampling_correction=False,
    )


SIDES: dict[str, Callable[[Shape, TrainingGroup, int], Side]] = {
    "ours": _ours,
    "trl": _trl,
    "prefix_grouper": _prefix_grouper,
}


def _child(side: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.peers", *sys.argv[1:], "--side", side]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    say(done.stdout.strip())
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
