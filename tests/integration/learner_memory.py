"""One rank of the learner whose tensors are counted from the first to the last: `MODEL OUT RANK RANKS PORT DTYPE`.

It writes to OUT, for every phase of a run, the bytes that were alive when it began and at its peak.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import deepspeed
import torch
from learner_scenarios import groups, rl_step

from actors.weights import update
from curriculum.shared_folder import SharedFolder
from learner.config import LearnerConfig
from learner.engine import LearnerEngine, Stage
from learner.export import empty_model
from learner.objective.settings import torch_dtype
from learner.weights.sender import WeightSender
from learner.zero3 import building, config
from learner.zero3.model_weights import stored_weights
from learner.zero3.policy import load_policy
from tests.harness.live_bytes import LiveBytes

REDUCE_ELEMENTS, SYNC_BYTES, FILE_BYTES = 100_000, 1 << 20, 1 << 20
"""Buckets and files of a model as small as that of the test."""
CPU = torch.device("cpu")


class DeviceBytes(LiveBytes):
    """Bytes that a device would have to hold: tensors in host memory, but no mapped files."""

    def __init__(self) -> None:
        """Count from now on."""
        super().__init__("cpu")
        self.phases: dict[str, tuple[int, int]] = {}
        """Bytes alive at the start of a phase, and at its peak."""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Note what is alive in a block."""
        gc.collect()  # layers and parameters are known to functions that they know themselves
        start = self.peak = self.now
        yield
        self.phases[name] = start, self.peak

    def _count(self, storage: torch.UntypedStorage, func: str) -> None:
        if not _is_mapped_file(storage.data_ptr()):
            super()._count(storage, func)


def _is_mapped_file(address: int) -> bool:
    with open("/proc/self/maps") as maps:
        for line in maps:
            span, _, _, _, inode, *_ = line.split()
            start, end = (int(bound, 16) for bound in span.split("-"))
            if start <= address < end:
                return inode != "0"
    return False


def run(memory: DeviceBytes, model: str, out: Path, rank: int, learner: LearnerConfig) -> None:
    """Go through all that a rank does with whole models."""
    options = {"dtype": torch_dtype(learner), "trust_remote_code": False}
    building.join_process_group(rank, learner.num_ranks, on_gpu=False)
    with memory.phase("a part"):
        take = building.take_part(config.zero3_config(learner), CPU)
        part = load_policy(model, **options, take=take)
    del part
    with memory.phase("the whole"):
        whole = load_policy(model, **options)
    del whole
    with memory.phase("start"):
        engine = LearnerEngine(learner, model, rank=rank, world_size=learner.num_ranks, seed=0)
    with memory.phase("reference"):
        engine.start_stage(Stage.RL)
    for holder in (engine._policy, engine._reference.module):
        check_values(holder.causal_lm, model)
    rl_step(engine, learner, groups(), rank)
    with memory.phase("publish"):
        WeightSender(engine.weights, is_root=rank == 0, every_byte=False).publish(1)
    with memory.phase("export"):
        engine.export(out / "model", max_file_bytes=FILE_BYTES)
    place = SharedFolder(str(out / "checkpoint"))
    place.make()
    with memory.phase("save"):
        engine.save(place)
    with memory.phase("load"):
        engine.load(place)


def check_values(causal_lm: Any, model: str) -> None:
    """Compare gathered weights with those of the files, rounded to the type of the recipe."""
    files = stored_weights(empty_model(Path(model), trust_remote_code=False), model)
    for name, stored in files.items():
        parameter = causal_lm.get_parameter(name)
        with deepspeed.zero.GatheredParameters([parameter]):
            assert torch.equal(parameter, stored.to(parameter.dtype)), name


def main(model: str, out: Path, rank: int, num_ranks: int, port: str, dtype: str) -> None:
    """Run one rank and write what it counted."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    torch.set_num_threads(1)
    update.BUCKET_BYTES, config.BUCKET_ELEMENTS = SYNC_BYTES, 10 * REDUCE_ELEMENTS
    learner = LearnerConfig(num_ranks=num_ranks, dtype=dtype, kl_coefficient=0.1, max_tokens_per_microbatch=4096)
    with DeviceBytes() as memory:
        run(memory, model, out, rank, learner)
    (out / f"{rank}.json").write_text(json.dumps(memory.phases))


if __name__ == "__main__":
    _, model, out, rank, num_ranks, port, dtype = sys.argv
    main(model, Path(out), int(rank), int(num_ranks), port, dtype)
