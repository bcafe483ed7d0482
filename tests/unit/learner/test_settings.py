import math

import torch

from learner.batch.aggregation import BATCH_MEAN, RESPONSE_MEAN, TOKEN_MEAN, Aggregation
from learner.config import LearnerConfig
from learner.objective.settings import aggregation_of, objective_of, torch_dtype


def _config(**settings):
    return LearnerConfig.model_validate(settings)


def test_every_algorithm_has_its_aggregation_and_clip():
    grpo = _config(algorithm={"type": "grpo", "clip": 0.1})
    dapo = _config(algorithm={"type": "dapo", "clip_low": 0.2, "clip_high": 0.3})
    dr_grpo = _config(algorithm={"type": "dr_grpo", "constant_tokens": 100})
    assert aggregation_of(grpo, warm_up=False) == RESPONSE_MEAN
    assert aggregation_of(dapo, warm_up=False) == TOKEN_MEAN
    assert aggregation_of(dr_grpo, warm_up=False) == Aggregation(over="constant", constant_tokens=100)
    assert [(o.clip_low, o.clip_high) for o in map(objective_of, (grpo, dapo, dr_grpo))] == [
        (0.1, 0.1),
        (0.2, 0.3),
        (0.2, 0.2),
    ]


def test_the_later_algorithms_differ_in_surrogate_clip_and_aggregation():
    gspo = _config(algorithm={"type": "gspo", "clip_low": 0.1, "clip_high": 0.2})
    cispo = _config(algorithm={"type": "cispo", "clip_high": 4.0, "token_mean": "batch"})
    dual = _config(algorithm={"type": "dapo", "dual_clip": 3.0})
    assert [(o.surrogate, o.clip_low, o.clip_high, o.dual_clip) for o in map(objective_of, (gspo, cispo, dual))] == [
        ("gspo", 0.1, 0.2, None),
        ("cispo", math.inf, 4.0, None),
        ("ppo", 0.2, 0.28, 3.0),
    ]
    assert [aggregation_of(config, warm_up=False) for config in (gspo, cispo, dual)] == [
        RESPONSE_MEAN,
        BATCH_MEAN,
        TOKEN_MEAN,
    ]


def test_the_warm_up_is_normalised_by_length_whatever_the_algorithm():
    assert aggregation_of(_config(algorithm={"type": "dr_grpo", "constant_tokens": 9}), warm_up=True) == TOKEN_MEAN


def test_the_importance_correction_is_off_until_asked_for():
    assert objective_of(_config()).importance_cap is None
    corrected = objective_of(_config(importance={"cap": 3.0, "beyond": "mask"}))
    assert (corrected.importance_cap, corrected.importance_beyond) == (3.0, "mask")


def test_bf16_is_bf16():
    assert (torch_dtype(_config(dtype="bf16")), torch_dtype(_config())) == (torch.bfloat16, torch.float32)
