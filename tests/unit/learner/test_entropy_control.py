import math

import pytest
from pydantic import ValidationError

from learner.config import LearnerConfig
from learner.objective.entropy_control import EntropySwitch


def test_negative_answers_are_left_out_above_high_and_come_back_below_low():
    switch = EntropySwitch(high=0.5, low=0.3)
    found = []
    for entropy in (0.4, 0.6, 0.4, 0.29, 0.4):
        switch.observe(entropy)
        found.append(switch.masking)
    assert found == [False, True, True, False, False]


def test_a_step_without_an_update_changes_nothing():
    switch = EntropySwitch(high=0.5, low=0.3, masking=True)
    switch.observe(math.nan)
    assert switch.masking


def test_only_negative_advantages_are_masked():
    assert EntropySwitch(high=1, low=0, masking=True).apply((-1.0, 0.5, 0.0)) == (0.0, 0.5, 0.0)
    assert EntropySwitch(high=1, low=0).apply((-1.0, 0.5)) == (-1.0, 0.5)


def test_thresholds_in_the_wrong_order_are_refused():
    with pytest.raises(ValidationError, match="swap them"):
        LearnerConfig.model_validate({"entropy_control": {"high": 0.1, "low": 0.2}})
