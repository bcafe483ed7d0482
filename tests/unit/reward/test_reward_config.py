import pytest
from pydantic import ValidationError

from reward.config import NoJudge, OpenAIJudge, RewardConfig, RuleSet, VllmJudge
from reward.kind import AnswerKind


def test_the_default_is_strict_rules_without_a_judge():
    config = RewardConfig()
    assert config.rules is RuleSet.STRICT
    assert config.judge == NoJudge()
    assert config.overlong is None


def test_the_judge_is_chosen_by_its_type():
    vllm = RewardConfig.model_validate({"judge": {"type": "vllm"}}).judge
    assert isinstance(vllm, VllmJudge)
    assert vllm.model == "Qwen/Qwen2.5-1.5B-Instruct"
    openai = RewardConfig.model_validate(
        {"judge": {"type": "openai", "base_url": "http://127.0.0.1:8000/v1", "model": "m"}}
    )
    assert isinstance(openai.judge, OpenAIJudge)
    assert openai.judge.name == "openai http://127.0.0.1:8000/v1 m"


def test_kinds_are_set_per_data_set():
    assert RewardConfig.model_validate({"kinds": {"mine": "numeric"}}).kinds == {"mine": AnswerKind.NUMERIC}


@pytest.mark.parametrize(
    "wrong",
    [
        {"rules": "lenient"},
        {"rule": "strict"},
        {"judge": {"type": "gpt"}},
        {"judge": {"type": "vllm", "url": "http://x"}},
        {"judge": {"type": "vllm", "num_gpus": 1.5}},
        {"judge": {"type": "openai", "base_url": "127.0.0.1", "model": "m"}},
        {"judge": {"type": "vllm", "max_tokens": 8192, "max_model_len": 8192}},
        {"overlong": {"max_tokens": 10, "cache_tokens": 11}},
        {"kinds": {"mine": "number"}},
    ],
)
def test_a_contradictory_or_mistyped_recipe_is_refused(wrong):
    with pytest.raises(ValidationError):
        RewardConfig.model_validate(wrong)


def test_a_judge_computes_in_fp32_on_a_cpu_and_in_bf16_on_as_many_gpus_as_it_has():
    judge = VllmJudge(num_gpus=2, max_concurrency=7, gpu_memory_utilization=0.3)
    on_gpu, on_cpu = judge.engine_config(on_gpu=True), judge.engine_config(on_gpu=False)
    assert (on_gpu.dtype, on_gpu.tensor_parallel_size, on_gpu.enforce_eager) == ("bf16", 2, False)
    assert (on_gpu.max_num_seqs, on_gpu.gpu_memory_utilization) == (7, 0.3)
    assert (on_cpu.dtype, on_cpu.tensor_parallel_size, on_cpu.enforce_eager) == ("fp32", 1, True)
    assert VllmJudge(num_gpus=0.25).engine_config(on_gpu=True).tensor_parallel_size == 1
