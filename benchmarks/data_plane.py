"""The data plane: metadata through the coordinator, bytes of a stored group, memory over a long run, cost of a draw.

Ray is real, on ports of its own and in a temporary folder; the coordinator is the product's actor, leases come through
the desk of the rollout actors, `keep` goes through the handle of the driver, groups are the product's records. The
engines are stand-ins: a holder leases, builds a group of fixed tokens at once and returns it as a rollout actor does,
small meta and large group apart, so that the driver owns it.

* groups/s: holders lease as fast as they can, group by group; the driver keeps every group by itself, and opens,
  reports and finishes a step per batch. No group is built.
* bytes: the worst group (60K prompt, 8 answers of 10K) in the object store, over 4 bytes per prompt token and 4 + 4 per
  response token. Groups carry no text: it is decoded where it is read.
* soak: the same with groups in the object store, each freed when its batch is reported; a holder returns several
  groups per call to save time. Growth is that of private memory (RssAnon), a line fitted through the second half of
  the run; every task has been visited by then.
* draws: fresh tasks over whole passes, shuffles and construction included, and replayed ones by difficulty, the
  construction told apart.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import time
from contextlib import ExitStack

import ray
from ray.experimental import get_object_locations

from actors.local_ray import local_ray
from benchmarks.coordinator_plane import Load, Plane, make_answers, make_group, make_tasks
from benchmarks.line import Claim, environment, print_line, say
from curriculum.hard_tasks import HardTasks
from curriculum.sampler import FreshSampler
from curriculum.task import TaskLease

MAX_GROWTH_MB = 5.0
"""Per 100,000 groups; a run of the paper's size has fewer."""
NUM_REPLAYED_DRAWS = 20_000


def main() -> None:
    """Parse the options, measure, print the line."""
    options = _options()
    sampler = {size: _fresh_draw_us(size, options.seed) for size in options.sampler_sizes}
    pool = {size: _replayed_draw_us(size, options.seed) for size in options.sampler_sizes}
    load = Load(
        num_tasks=options.tasks, prompt_tokens=options.soak_prompt_tokens, response_tokens=options.soak_response_tokens,
        group_size=options.group_size, batch_size=options.batch, num_holders=options.holders,
        num_in_flight=options.in_flight,
    )  # fmt: skip
    arguments = {"num_cpus": 4, "include_dashboard": False, "object_store_memory": options.object_store_bytes}
    with local_ray(say, **arguments) as started, ExitStack() as stack:
        stack.callback(ray.shutdown)
        ray.init(address=started.address, log_to_driver=False, logging_level=logging.ERROR)
        stored = _stored_bytes(options.prompt_tokens, options.response_tokens, options.group_size)
        plane = Plane(load, seed=options.seed)
        rate = asyncio.run(plane.groups_per_second(options.groups, options.repeats))
        soak = asyncio.run(plane.soak(options.soak_groups))
    per_100k = {name: growth * 100_000 for name, growth in soak.growth_mb_per_group.items()}
    claims = [
        Claim.at_least("metadata through the coordinator", max(rate), "groups/s", 2000),
        Claim.at_most("stored group over ideal bytes", stored["bytes"] / stored["ideal"], "ratio", 1.1),
        Claim.at_most("coordinator's growth per 100,000 groups", per_100k["coordinator"], "MB", MAX_GROWTH_MB),
        Claim.at_most("driver's growth per 100,000 groups", per_100k["driver"], "MB", MAX_GROWTH_MB),
        Claim.at_most("object store left behind by the soak", soak.store_bytes_left, "bytes", 0),
        Claim.at_most("fresh draw, dearest size over cheapest", _spread(sampler), "ratio", 3),
        Claim.at_most("replayed draw, dearest size over cheapest", _spread(pool), "ratio", 3),
    ]
    detail = {
        "groups_per_second": rate,
        "cpu_us_per_group": plane.cpu_us_per_group,
        "stored_group": stored,
        "soak": {"groups": options.soak_groups, "seconds": soak.seconds, "memory_mb": soak.memory_mb,
                 "object_store_peak_bytes": soak.store_bytes_peak},
        "fresh_draw_us": sampler,
        "replayed_draw_us": pool,
        "options": vars(options),
        **environment("ray", "numpy"),
    }  # fmt: skip
    print_line("data_plane", claims, detail)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data_plane", description=__doc__)
    parser.add_argument("--groups", type=int, default=10_000, help="per repeat of the throughput")
    parser.add_argument("--repeats", type=int, default=3, help="of the throughput; the best counts")
    parser.add_argument("--tasks", type=int, default=2_000)
    parser.add_argument("--holders", type=int, default=2, help="processes that lease")
    parser.add_argument("--in-flight", type=int, default=64, help="leases that a holder asks for at a time")
    parser.add_argument("--batch", type=int, default=128, help="groups of a step")
    parser.add_argument("--soak-groups", type=int, default=100_000)
    parser.add_argument("--soak-prompt-tokens", type=int, default=12_000)
    parser.add_argument("--soak-response-tokens", type=int, default=1_000)
    parser.add_argument("--prompt-tokens", type=int, default=60_000)
    parser.add_argument("--response-tokens", type=int, default=10_000)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--sampler-sizes", type=int, nargs="+", default=[1_000, 100_000, 10_000_000])
    parser.add_argument("--object-store-bytes", type=int, default=600_000_000)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


# ---- measurements


def _stored_bytes(prompt_tokens: int, response_tokens: int, group_size: int) -> dict[str, int]:
    (task,) = make_tasks(1, prompt_tokens)
    lease = TaskLease(lease_id=0, task_id=task.task_id, attempt=0, replayed=False, phase=0)
    group = make_group(task, lease, make_answers(group_size, response_tokens))
    reference = ray.put(group)
    stored = get_object_locations([reference])[reference]["object_size"]
    ideal = 4 * prompt_tokens + (4 + 4) * response_tokens * group_size
    assert group.num_bytes == ideal, "the arrays of a group are its ideal size"
    return {"bytes": stored, "ideal": ideal}


def _fresh_draw_us(num_tasks: int, seed: int) -> float:
    """Process time per draw over whole passes, construction included."""
    task_ids = [f"task-{index:08d}" for index in range(num_tasks)]
    num_draws = max(num_tasks, 1_000_000 // num_tasks * num_tasks)
    start = time.process_time()
    sampler = FreshSampler(task_ids, seed=seed, phase=0)
    for _ in range(num_draws):
        sampler.draw()
    return _reported("fresh", num_tasks, (time.process_time() - start) / num_draws)


def _replayed_draw_us(num_tasks: int, seed: int) -> float:
    """Process time per replayed draw; every drawn task is then reported with another accuracy, as in a run."""
    task_ids = [f"task-{index:08d}" for index in range(num_tasks)]
    accuracies = {task_id: index % 8 / 8 for index, task_id in enumerate(task_ids)}
    start = time.process_time()
    tasks = HardTasks(task_ids, accuracy_of=accuracies.get, is_taken=lambda _: False, seed=seed, phase=0)
    say(f"{num_tasks} tasks to replay: {time.process_time() - start:.2f} s for the construction")
    start = time.process_time()
    for index in range(NUM_REPLAYED_DRAWS):
        (task_id,) = tasks.draw(1)
        accuracies[task_id] = index % 8 / 8
        tasks.refresh(task_id)
    return _reported("replayed", num_tasks, (time.process_time() - start) / NUM_REPLAYED_DRAWS)


def _reported(kind: str, size: int, seconds: float) -> float:
    say(f"{kind} draw of {size} tasks: {1e6 * seconds:.2f} us")
    return 1e6 * seconds


def _spread(values: dict[int, float]) -> float:
    return max(values.values()) / min(values.values())


if __name__ == "__main__":
    main()
