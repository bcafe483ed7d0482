import pytest

from reward.score import Score


def test_accuracy_and_reward_are_unknown_together():
    with pytest.raises(ValueError, match="together"):
        Score(answer="x", rule=0.0, judge=None, accuracy=None, reward=0.0, reason="")


def test_a_rule_verdict_is_zero_or_one():
    with pytest.raises(ValueError, match=r"rule=0\.5"):
        Score(answer="x", rule=0.5, judge=None, accuracy=0.0, reward=0.0, reason="")
