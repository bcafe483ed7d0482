"""Hostile inputs of a megabyte are scored to their end, and never as right.

Time that grows with the square of the input would be hours here: the limit of a test is the difference between that and
a busy machine. `python -m benchmarks.hostile` measures the seconds.
"""

import pytest

from benchmarks.hostile import RESPONSES, TRUTHS, VERDICTS, response
from reward.config import RuleSet
from reward.judge_prompt import imitates_judge_format, neutralise, parse_verdict
from reward.kind import AnswerKind
from reward.rules import apply_rules

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize("rules", list(RuleSet))
@pytest.mark.parametrize("kind", list(AnswerKind))
@pytest.mark.parametrize("name", list(RESPONSES))
def test_a_megabyte_scores_zero(name, kind, rules):
    outcome = apply_rules(rules, kind, response(name), (TRUTHS[kind],))
    pays_for_nothing = rules is RuleSet.RELEASED and kind is AnswerKind.TEXT  # "" is a substring of every truth
    assert not outcome.accepted or pays_for_nothing


@pytest.mark.parametrize("name", list(VERDICTS))
def test_a_megabyte_of_brackets_is_no_verdict(name):
    assert parse_verdict(VERDICTS[name]) == "unknown"
    imitates_judge_format(VERDICTS[name])
    neutralise(VERDICTS[name], 1_000)
