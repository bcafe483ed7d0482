"""One card for engine and learner: the engine lends its memory, and computes as before when it has it again."""

import asyncio
from pathlib import Path

import pytest
import torch

from actors.config import EngineConfig
from actors.rollout import Sampling
from curriculum.errors import RunFailed
from learner.gpu_share import GpuShare
from learner.weights.sender import WeightSender, WeightSource

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")

BASE = Path(__file__).parents[2] / "recipes" / "assets" / "local_base"
PROMPT = list(range(20, 225))
SAMPLING = Sampling(num_samples=4, temperature=1.0, top_p=0.95, max_response_tokens=24)
SHARE = 0.5


@pytest.mark.parametrize("enforce_eager", [True, False], ids=["eager", "graphs"])
def test_an_engine_that_sleeps_lends_its_memory_and_samples_as_before_when_it_is_awake(enforce_eager):
    from transformers import AutoModelForCausalLM

    from actors.engine import VLLMEngine

    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.bfloat16).cuda()
    sender = WeightSender(WeightSource(model), is_root=True, every_byte=False)

    async def in_turns():
        config = EngineConfig(dtype="bf16", enforce_eager=enforce_eager, gpu_memory_utilization=SHARE)
        engine = VLLMEngine(
            str(BASE), config, max_model_len=512, stop_token_ids=(), seed=0, on_gpu=True, fp32_logits=True, sleeps=True
        )
        try:
            before = await engine.sample(PROMPT, SAMPLING, seed=3)
            awake_bytes, total_bytes = torch.cuda.mem_get_info()
            await engine.sleep()
            lent = torch.empty(int(0.8 * SHARE * total_bytes), dtype=torch.uint8, device="cuda")
            lent_share = (torch.cuda.mem_get_info()[0] + lent.numel() - awake_bytes) / total_bytes
            del lent
            torch.cuda.empty_cache()
            await engine.wake_up()
            after = await engine.sample(PROMPT, SAMPLING, seed=3)
            receipt = await engine.load_weights(sender.publish(1))
            updated = await engine.sample(PROMPT, SAMPLING, seed=3)
            return before, after, updated, receipt.version, lent_share
        finally:
            engine.shutdown()

    before, after, updated, version, lent_share = asyncio.run(in_turns())
    tokens = [[sample.token_ids for sample in answers] for answers in (before, after, updated)]
    assert tokens[1] == tokens[0]
    assert tokens[2] == tokens[0], "the update sends the weights that it has"
    assert version == 1
    assert lent_share > 0.8 * SHARE


def test_a_rank_gets_no_more_than_its_share_and_is_told_what_it_holds_at_rest():
    device = torch.device("cuda", 0)
    total_bytes = torch.cuda.get_device_properties(device).total_memory
    share = GpuShare(at_work=0.2, at_rest=0.05)
    try:
        share.limit()
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(int(0.3 * total_bytes), dtype=torch.uint8, device=device)
        held = torch.empty(int(0.1 * total_bytes), dtype=torch.uint8, device=device)
        with pytest.raises(RunFailed, match=r"lower it by 0\.0[56]"):
            share.check_at_rest(device)
        del held
        torch.cuda.empty_cache()
        share.check_at_rest(device)
    finally:
        GpuShare(at_work=1.0, at_rest=1.0).limit()
