"""Weights from one CUDA card to a vLLM engine on another one, over NCCL."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from actors.config import EngineConfig
from cluster.weights.sync import check_probe, check_receipt
from learner.weights.sender import WeightSender, WeightSource
from tests.harness.scored import text_scores

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices on this machine")

BASE = Path(__file__).parents[2] / "recipes" / "assets" / "local_base"
PROBE = list(range(20, 84))


def test_an_engine_computes_with_what_another_card_broadcasts_again_and_again():
    from transformers import AutoModelForCausalLM

    from actors.engine import VLLMEngine

    torch.cuda.set_device(1)
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.bfloat16).cuda()
    sender = WeightSender(WeightSource(model), is_root=True, every_byte=False)
    announcement = sender.open_group(
        1, host="127.0.0.1", num_receivers=1, epoch=1, timeout_s=60.0, device=torch.device("cuda", 1)
    )

    def publish(version):
        torch.cuda.set_device(1)  # of this thread
        return sender.publish(version)

    async def updates():
        config = EngineConfig(dtype="bf16", enforce_eager=True, gpu_memory_utilization=0.3)
        engine = VLLMEngine(
            str(BASE), config, max_model_len=512, stop_token_ids=(), seed=0, on_gpu=True, fp32_logits=True
        )
        try:
            for version in (1, 2):
                ours = _disturbed_scores(model)
                update = replace(announcement, version=version)
                sent, receipt = await asyncio.gather(asyncio.to_thread(publish, version), engine.load_weights(update))
                yield version, sent, receipt, ours, await engine.score(PROBE)
        finally:
            engine.shutdown()

    async def check():
        async for version, sent, receipt, ours, theirs in updates():
            check_receipt(sent, receipt, "rollout-0")
            check_probe(ours, theirs, engine="rollout-0", version=version, dtypes=("bf16",))

    asyncio.run(check())


def _disturbed_scores(model):
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.05 * torch.randn_like(weight)
        return text_scores(model(torch.tensor([PROBE]).cuda()).logits[0], PROBE)
