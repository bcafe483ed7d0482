"""What rounding costs where gradients of a bf16 model are summed up: over micro-batches and over ranks.

Two learners make the gradient of one batch of many rows: `fp32` is the product, `bf16` the same with the settings that
DeepSpeed has by itself. Both are compared with the sum in fp64 of the gradients of the single rows, each computed in
bf16 by a policy that DeepSpeed does not know. `update` is the relative error of the first step of AdamW.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.line import Claim, environment, print_line, say

VOCABULARY, MAX_ROW_TOKENS, EXACT = 1700, 110, 1e-6


def main() -> None:
    """Parse the options, measure, print the line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bf16_gradients", description=__doc__)
    parser.add_argument("--groups", type=int, default=70)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rank", nargs=5, metavar=("RANK", "RANKS", "PORT", "SUMS", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        run_rank(options, *options.rank)
        return
    found = {
        f"{sums}, {num_ranks} ranks": measure(options, num_ranks, sums)
        for num_ranks in (1, 2)
        for sums in ("bf16", "fp32")
    }
    claims = [
        Claim.at_most(f"sums in {name}: error of the gradient", value["gradient"], "relative", EXACT)
        for name, value in found.items()
        if name.startswith("fp32")
    ]
    print_line("bf16_gradients", claims, {**found, "environment": environment("torch", "deepspeed")})


def measure(options: argparse.Namespace, num_ranks: int, sums: str) -> dict[str, float]:
    """Run the ranks as processes, and read what the first one found."""
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder) / "model", options.seed)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        command = [sys.executable, "-m", "benchmarks.bf16_gradients", f"--groups={options.groups}",
                   f"--seed={options.seed}", "--rank"]  # fmt: skip
        ranks = [
            subprocess.Popen([*command, str(rank), str(num_ranks), port, sums, folder], stdout=sys.stderr)
            for rank in range(num_ranks)
        ]
        statuses = [rank.wait() for rank in ranks]
        if any(statuses):
            raise RuntimeError("a rank failed; its messages are above")
        found = json.loads((Path(folder) / "found.json").read_text(encoding="utf-8"))
    say(f"{sums}, {num_ranks} ranks: {found}")
    return found


def save_model(folder: Path, seed: int) -> None:
    """Write a tiny random model."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=128, max_position_embeddings=512, tie_word_embeddings=True,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)


def run_rank(options: argparse.Namespace, rank: str, num_ranks: str, port: str, sums: str, folder: str) -> None:
    """Make both gradients as one rank."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    import torch
    from deepspeed.utils import safe_get_full_grad

    from learner.batch.packing import groups_of, plan_slice
    from learner.config import LearnerConfig
    from learner.engine import LearnerEngine, Stage
    from learner.forward.running_batch import mini_batch_parts
    from learner.zero3 import building
    from learner.zero3.config import zero3_config

    if sums == "bf16":

        def without(*arguments: Any, **settings: Any) -> dict[str, Any]:
            found = zero3_config(*arguments, **settings)
            return {key: value for key, value in found.items() if key not in ("data_types", "communication_data_type")}

        building.zero3_config = without
    torch.set_num_threads(1)
    config = LearnerConfig(num_ranks=int(num_ranks), dtype="bf16", max_tokens_per_microbatch=MAX_ROW_TOKENS)
    engine = LearnerEngine(config, f"{folder}/model", rank=int(rank), world_size=int(num_ranks), seed=0)
    engine.start_stage(Stage.RL)
    batch = make_groups(options.groups, options.seed)
    plan = plan_slice(batch, num_ranks=int(num_ranks), max_tokens=MAX_ROW_TOKENS)
    (part,) = mini_batch_parts(0, len(batch), batch_groups=len(batch), num_mini_batches=1)
    engine.accumulate(plan, {index: batch[index] for index in groups_of(plan, int(rank))}, part)
    named = dict(engine._policy.named_parameters())
    ours = torch.cat([safe_get_full_grad(weight).flatten().double() for weight in named.values()])
    rows = engine._rows(plan, dict(enumerate(batch)), num_groups=len(batch))
    exact = _flat(_sum_of_rows(engine, rows, f"{folder}/model"))
    torch.distributed.all_reduce(exact)
    if int(rank) == 0:
        found = {"rows": len(rows) * int(num_ranks), "gradient": _error(ours, exact),
                 "update": _error(_first_step(ours), _first_step(exact))}  # fmt: skip
        (Path(folder) / "found.json").write_text(json.dumps(found), encoding="utf-8")
    torch.distributed.barrier()
    sys.stderr.flush()
    os._exit(0)  # threads of the libraries sometimes abort the ordinary end of an interpreter


def _sum_of_rows(engine: Any, rows: list[Any], model: str) -> list[Any]:
    """The gradients of the single rows, added up in fp64."""
    import torch

    from learner.zero3.policy import load_policy

    policy = load_policy(model, dtype=torch.bfloat16, trust_remote_code=False)
    sums = [torch.zeros_like(weight, dtype=torch.float64) for weight in policy.parameters()]
    for row in rows:
        policy.zero_grad()
        policy(row, engine._loss(row, None))[0].backward()
        for total, weight in zip(sums, policy.parameters(), strict=True):
            total += weight.grad.double()
    return sums


def make_groups(count: int, seed: int) -> list[Any]:
    """Ragged groups with advantages of random rewards."""
    from learner.advantages import group_advantages
    from learner.batch.microbatch import TrainingGroup

    rng = np.random.default_rng(seed)
    groups = []
    for index in range(count):
        lengths = rng.integers(1, 14, size=rng.integers(2, 6))
        advantages = group_advantages([float(reward) for reward in rng.permutation(len(lengths))])
        groups.append(
            TrainingGroup(
                prompt_ids=rng.integers(VOCABULARY, size=1 + 6 * (index % 7), dtype=np.int32),
                response_ids=tuple(rng.integers(VOCABULARY, size=n, dtype=np.int32) for n in lengths),
                rollout_logprobs=tuple(np.full(n, -2.0, np.float32) for n in lengths),
                advantages=tuple(a for a in advantages if a is not None),
                temperature=0.8,
            )
        )
    return groups


def _flat(tensors: list[Any]) -> Any:
    import torch

    return torch.cat([tensor.flatten() for tensor in tensors])


def _first_step(gradient: Any) -> Any:
    """The direction of the first step of AdamW, whose moments are the gradient and its square."""
    return gradient / (gradient.abs() + 1e-8)


def _error(found: Any, exact: Any) -> float:
    return ((found - exact).norm() / exact.norm()).item()


if __name__ == "__main__":
    main()
