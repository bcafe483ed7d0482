import pytest

from reward.overlong import overlong_penalty


@pytest.mark.parametrize(
    ("num_tokens", "penalty"), [(0, 0.0), (9_000, 0.0), (9_250, -0.25), (9_500, -0.5), (10_000, -1.0), (10_001, -1.0)]
)
def test_the_penalty_grows_linearly_over_the_cache(num_tokens, penalty):
    assert overlong_penalty(num_tokens, max_tokens=10_000, cache_tokens=1_000) == penalty


@pytest.mark.parametrize(("max_tokens", "cache_tokens"), [(10, 0), (10, 11), (0, 0)])
def test_a_cache_outside_the_limit_is_refused(max_tokens, cache_tokens):
    with pytest.raises(ValueError, match="cache_tokens"):
        overlong_penalty(5, max_tokens=max_tokens, cache_tokens=cache_tokens)


def test_a_negative_length_is_refused():
    with pytest.raises(ValueError, match="num_tokens=-1"):
        overlong_penalty(-1, max_tokens=10, cache_tokens=5)
