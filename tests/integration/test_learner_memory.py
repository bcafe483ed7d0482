"""What a rank holds at most, counted in real ranks: its part of the model, the largest layer, the buckets."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

sys.path.insert(0, str(Path(__file__).parent))
import learner_memory

from learner.export import empty_weights

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
NUM_RANKS = 2
SMALL = 200_000
"""Bytes of what is not divided, norms and biases, and of the rows of a step."""


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    """Layers that are all divided, embedding and head larger than any of them; several files."""
    torch.manual_seed(0)
    shape = Qwen2Config(
        vocab_size=4000,
        hidden_size=384,
        intermediate_size=1500,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=6,
        tie_word_embeddings=False,
        max_position_embeddings=512,
    )
    folder = tmp_path_factory.mktemp("model")
    Qwen2ForCausalLM(shape).save_pretrained(folder, max_shard_size="20MB")
    assert len(list(folder.glob("*.safetensors"))) > 3
    base = ROOT / "recipes" / "assets" / "local_base"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((base / name).read_bytes())
    return folder


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def memory(request, model_path, tmp_path_factory):
    """The phases of the ranks, and the sizes of the model in the type of the recipe."""
    out = tmp_path_factory.mktemp(request.param)
    with socket.socket() as attempt:
        attempt.bind(("127.0.0.1", 0))
        port = str(attempt.getsockname()[1])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    ranks = []
    for rank in range(NUM_RANKS):
        order = [learner_memory.__file__, model_path, out, rank, NUM_RANKS, port, request.param]
        with (out / f"{rank}.log").open("w") as log:
            process = subprocess.Popen([sys.executable, *map(str, order)], env=environment, stdout=log, stderr=log)
        ranks.append(process)
    for rank, process in enumerate(ranks):
        assert process.wait(timeout=300) == 0, (out / f"{rank}.log").read_text()[-4000:]
    return Memory(model_path, out, 2 if request.param == "bf16" else 4)


class Memory:
    """What was counted, and what it is held against."""

    def __init__(self, model_path, out, item_bytes):
        self.phases = [json.loads((out / f"{rank}.json").read_text()) for rank in range(NUM_RANKS)]
        self.model = out / "model"
        self.item_bytes = item_bytes
        shapes = empty_weights(model_path, trust_remote_code=False)
        sizes = [weight.numel() for weight in shapes.values()]
        layer = sum(weight.numel() for name, weight in shapes.items() if ".layers.0." in name)
        self.part = sum(-(-size // NUM_RANKS) for size in sizes)
        self.whole = sum(sizes) * item_bytes
        self.largest = max(sizes) * item_bytes
        self.layer = max(layer * item_bytes, self.largest)

    def peaks(self, phase):
        """The peak of every rank."""
        return [phases[phase][1] for phases in self.phases]

    def growths(self, phase):
        """How far every rank went beyond what it held before."""
        return [phases[phase][1] - phases[phase][0] for phases in self.phases]


def test_a_rank_never_holds_the_whole_model(memory):
    bound = memory.part * memory.item_bytes + memory.layer + SMALL
    assert bound < 0.65 * memory.whole
    for phase in ("a part", "reference"):
        assert all(memory.part * memory.item_bytes < growth <= bound for growth in memory.growths(phase)), phase


def test_the_count_sees_a_model_that_is_loaded_whole(memory):
    assert all(growth >= memory.whole for growth in memory.growths("the whole"))


def test_a_rank_starts_within_its_parts_the_largest_layer_and_the_bucket(memory):
    weights_masters_gradients = memory.part * (memory.item_bytes + 4 + 4)
    bucket = 4 * learner_memory.REDUCE_ELEMENTS
    assert all(
        weights_masters_gradients < growth <= weights_masters_gradients + memory.layer + bucket + SMALL
        for growth in memory.growths("start")
    )


def test_the_weights_go_out_bucket_by_bucket(memory):
    bucket = max(memory.largest, learner_memory.SYNC_BYTES)
    assert 3 * bucket < 0.3 * memory.whole
    assert all(memory.largest <= growth <= 3 * bucket + SMALL for growth in memory.growths("publish"))


def test_an_export_holds_one_tensor_on_the_device_and_one_file_in_host_memory(memory):
    file = max(memory.largest, learner_memory.FILE_BYTES)
    root, *others = memory.growths("export")
    assert memory.largest <= root <= 2 * memory.largest + file + SMALL
    assert all(growth <= 2 * memory.largest + SMALL for growth in others)
    assert len(list(memory.model.glob("*.safetensors"))) > 8


def test_saving_and_loading_a_checkpoint_take_less_than_one_parameter(memory):
    for phase in ("save", "load"):
        assert all(growth <= SMALL for growth in memory.growths(phase)), phase
