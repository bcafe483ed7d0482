"""One rank of a learner on a node with disks of its own: what it saves, where, and what it refuses.

Reads `{rank, port, model, found, hidden, stored, full, reference}` from its standard input and writes its findings to
`found`.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import fsspec
import torch
from fsspec.implementations.dirfs import DirFileSystem

from curriculum.errors import UserError
from curriculum.shared_folder import SharedFolder
from learner.engine import Stage
from learner.zero3.shared_model import model_nearby, publish_model
from tests.integration import learner_scenarios as scenarios

NUM_RANKS = 2


class Bucket(DirFileSystem):
    """A storage of objects, `bucket://`, whose objects are files of a folder that every process can reach."""

    protocol = "bucket"

    def __init__(self, **options):
        super().__init__(path=os.environ["BUCKET"], fs=fsspec.filesystem("file"), **options)


fsspec.register_implementation("bucket", Bucket)


def refusal(call) -> str:
    try:
        call()
    except UserError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def equal(engine, before: dict[str, torch.Tensor]) -> bool:
    """Whether rank 0 finds the weights to be these; the other ranks have none."""
    found = dict(engine.gather_weights())
    return found.keys() == before.keys() and all(torch.equal(found[name], before[name]) for name in before)


def main() -> None:
    order = json.load(sys.stdin)
    rank, places = order["rank"], {name: SharedFolder(order[name]) for name in ("hidden", "stored", "full")}
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=order["port"])
    torch.set_num_threads(1)
    scenarios.VOCAB = 90  # of the local base, which has fewer words than the model of the scenarios
    learner = scenarios.config(NUM_RANKS, kl_coefficient=0.1)
    engine = scenarios.make_engine(learner, order["model"], rank)
    engine.start_stage(Stage.SFT)
    engine.sft_step(scenarios.demonstrations(), learning_rate=1e-3)
    found = {name: refusal(lambda: engine.save(places[name])) for name in ("hidden", "full")}  # noqa: B023
    found["left"] = os.listdir(order["full"])
    written = engine.save(places["stored"])
    found["written"] = {name: asdict(digest) for name, digest in written.items()}

    first = engine.sft_step(scenarios.demonstrations(), learning_rate=1e-3)
    after = dict(engine.gather_weights())
    engine.load(places["stored"])
    found["back"] = not equal(engine, after) or rank > 0
    again = engine.sft_step(scenarios.demonstrations(), learning_rate=1e-3)
    found["same"] = first == again and equal(engine, after)

    reference = SharedFolder(order["reference"])
    published = publish_model(reference, engine.export, rank=rank)
    found["published"] = {name: asdict(digest) for name, digest in published.items()}
    with model_nearby(reference, node=str(rank), rank=rank) as path:
        engine.start_stage(Stage.RL, reference_path=path)
    found["kl"] = scenarios.rl_step(engine, learner, scenarios.groups(), rank).kl_to_reference
    found["scratch"] = os.listdir(tempfile.gettempdir())
    Path(order["found"]).write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
