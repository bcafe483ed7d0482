"""Weights from a CUDA card to a vLLM engine on it, through host memory."""

import asyncio
from pathlib import Path

import pytest
import torch

from actors.config import EngineConfig
from actors.weights.tensors import described
from cluster.weights.sync import check_probe, check_receipt
from learner.weights.sender import WeightSender, WeightSource
from tests.harness.scored import text_scores

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")

BASE = Path(__file__).parents[2] / "recipes" / "assets" / "local_base"
PROBE = list(range(20, 84))


@pytest.mark.parametrize("stride", [1, 64])
def test_a_tensor_has_the_same_checksum_on_either_device(stride):
    tensor = torch.randn(300, 1000).bfloat16()
    records = [described("a", tensor.to(device), version=5, stride=stride) for device in ("cpu", "cuda")]
    assert records[0] == records[1]


def test_an_engine_computes_with_what_the_card_published():
    from transformers import AutoModelForCausalLM

    from actors.engine import VLLMEngine

    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.bfloat16).cuda()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.05 * torch.randn_like(weight)
        ours = text_scores(model(torch.tensor([PROBE]).cuda()).logits[0], PROBE)
    sender = WeightSender(WeightSource(model), is_root=True, every_byte=False)

    async def update():
        config = EngineConfig(dtype="bf16", enforce_eager=True, gpu_memory_utilization=0.3)
        engine = VLLMEngine(
            str(BASE), config, max_model_len=512, stop_token_ids=(), seed=0, on_gpu=True, fp32_logits=True
        )
        try:
            sent = sender.publish(1)
            return sent, await engine.load_weights(sent), await engine.score(PROBE)
        finally:
            engine.shutdown()

    sent, receipt, theirs = asyncio.run(update())
    check_receipt(sent, receipt, "rollout-0")
    check_probe(ours, theirs, engine="rollout-0", version=1, dtypes=("bf16",))
