"""What a stranger's recipe would do with the user's rights and keys needs the user's word."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.recipe.load import load_recipe
from cluster.recipe.trust import check_trust, key_destination
from curriculum.errors import UserError

RECIPES = Path(__file__).parents[3] / "recipes"
JUDGE = "reward.judge={type: openai, base_url: 'https://stranger.example/v1', model: m, api_key_env: %s}"


def recipe(*overrides):
    return load_recipe(RECIPES / "local.yaml", overrides)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.name)
def test_no_recipe_of_ours_asks_for_anything(path):
    check_trust(load_recipe(path), remote_code=False)


def test_code_that_comes_with_a_model_runs_only_if_the_command_says_so():
    config = recipe("model.trust_remote_code=true")
    with pytest.raises(UserError, match=r"code that comes with 'recipes/assets/local_base' .* add --trust-remote-code"):
        check_trust(config, remote_code=False)
    check_trust(config, remote_code=True)


def test_a_recipe_does_not_choose_which_variable_is_sent(monkeypatch):
    monkeypatch.delenv("QWENLONG_ALLOW_ENV", raising=False)
    config = recipe(JUDGE % "AWS_SECRET_ACCESS_KEY")
    with pytest.raises(UserError, match=r"^reward\.judge\.api_key_env='AWS_SECRET_ACCESS_KEY': .*QWENLONG_ALLOW_ENV"):
        check_trust(config, remote_code=False)
    monkeypatch.setenv("QWENLONG_ALLOW_ENV", "AWS_SECRET_ACCESS_KEY")
    check_trust(config, remote_code=False)


def test_where_a_key_goes_is_told(monkeypatch):
    config = recipe(JUDGE % "OPENAI_API_KEY")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert key_destination(config) is None
    monkeypatch.setenv("OPENAI_API_KEY", "open sesame")
    told = key_destination(config)
    assert told is not None
    assert told.startswith("https://stranger.example/v1 gets the key in OPENAI_API_KEY")
    assert "open sesame" not in told
    assert key_destination(recipe()) is None
