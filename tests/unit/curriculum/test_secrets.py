"""Secrets of the environment reach whom the user allows, and nobody else."""

from __future__ import annotations

import os

import pytest

from curriculum.errors import UserError
from curriculum.secrets import (
    ENDPOINT_KEYS,
    blanked_secrets,
    endpoint_key,
    endpoint_secrets,
    hub_secrets,
    is_secret,
    lent,
    storage_secrets,
    without_secrets,
)

SECRETS = (
    "OPENAI_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "GITHUB_TOKEN", "GOOGLE_APPLICATION_CREDENTIALS", "DB_PASSWORD", "PGPASSWORD", "MY_SECRET", "SSH_AUTH_SOCK",
    "api_key", "KEY2", "NPM_TOKEN", "AZURE_CLIENT_SECRET", "JWT_SECRET_KEY", "OPENAI_APIKEY",
)  # fmt: skip
HARMLESS = (
    "PATH", "HOME", "TOKENIZERS_PARALLELISM", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE", "KEYBOARD", "OMP_NUM_THREADS",
    "LD_LIBRARY_PATH", "HF_HOME", "HF_HUB_OFFLINE", "CUDA_VISIBLE_DEVICES", "MONKEYS", "PYTHONPATH", "PATIENCE",
)  # fmt: skip


@pytest.mark.parametrize("name", SECRETS)
def test_a_name_that_says_key_token_or_password_is_a_secret(name):
    assert is_secret(name)


@pytest.mark.parametrize("name", HARMLESS)
def test_other_names_are_kept(name):
    assert not is_secret(name)


def test_an_environment_without_secrets_keeps_everything_else():
    environment = dict.fromkeys((*SECRETS, *HARMLESS), "x")
    assert without_secrets(environment) == dict.fromkeys(HARMLESS, "x")


def test_the_secrets_of_an_environment_and_the_usual_ones_are_blanked():
    blanked = blanked_secrets({"MY_TOKEN": "x", "HOME": "/root"})
    assert set(blanked.values()) == {""}
    assert {"MY_TOKEN", "OPENAI_API_KEY", "HF_TOKEN", "WANDB_API_KEY"} <= blanked.keys()
    assert "HOME" not in blanked


@pytest.mark.parametrize("name", ENDPOINT_KEYS)
def test_a_key_of_an_endpoint_may_be_sent_to_one(name, monkeypatch):
    monkeypatch.setenv(name, "open sesame")
    assert endpoint_key(name) == "open sesame"


def test_an_unset_key_is_none(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert endpoint_key("OPENAI_API_KEY") is None


def test_no_other_variable_is_sent_unless_the_user_allows_it(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "mine")
    with pytest.raises(UserError, match=r"reward\.judge\.api_key_env='AWS_SECRET_ACCESS_KEY'") as error:
        endpoint_key("AWS_SECRET_ACCESS_KEY", name="reward.judge.api_key_env")
    assert "set QWENLONG_ALLOW_ENV=AWS_SECRET_ACCESS_KEY" in str(error.value)
    assert "mine" not in str(error.value)
    monkeypatch.setenv("QWENLONG_ALLOW_ENV", "MY_KEY, AWS_SECRET_ACCESS_KEY")
    assert endpoint_key("AWS_SECRET_ACCESS_KEY") == "mine"


def test_the_token_of_the_hub_is_for_processes_that_load_from_the_hub(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    assert hub_secrets("owner/name", str(tmp_path)) == {"HF_TOKEN": "hf_x"}
    assert hub_secrets(str(tmp_path)) == hub_secrets() == {}


def test_a_process_that_asks_an_endpoint_gets_its_key_and_the_permission(monkeypatch):
    monkeypatch.setenv("MY_KEY", "open sesame")
    monkeypatch.setenv("QWENLONG_ALLOW_ENV", "MY_KEY,OTHER")
    secrets = endpoint_secrets("MY_KEY")
    for name in ("MY_KEY", "QWENLONG_ALLOW_ENV"):
        monkeypatch.delenv(name)
    assert secrets.keys() == {"MY_KEY", "QWENLONG_ALLOW_ENV"}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    assert endpoint_key("MY_KEY") == "open sesame"
    with pytest.raises(UserError):
        endpoint_key("OTHER")


@pytest.mark.parametrize(
    ("url", "names"),
    [
        ("s3://bucket/runs", {"AWS_SECRET_ACCESS_KEY"}),
        ("gs://bucket/runs", {"GOOGLE_APPLICATION_CREDENTIALS"}),
        ("abfs://bucket/runs", {"AZURE_STORAGE_KEY"}),
        ("file:///shared", set()),
        (None, set()),
    ],
)
def test_a_storage_gets_the_variables_of_its_own_cloud(url, names, monkeypatch):
    for name in list(os.environ):
        monkeypatch.delenv(name)
    for name in ("AWS_SECRET_ACCESS_KEY", "GOOGLE_APPLICATION_CREDENTIALS", "AZURE_STORAGE_KEY"):
        monkeypatch.setenv(name, f"value of {name}")
    assert storage_secrets(url) == {name: f"value of {name}" for name in names}


def test_lent_secrets_are_taken_back(monkeypatch):
    monkeypatch.setenv("AWS_REGION", "before")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    with lent({"AWS_REGION": "lent", "AWS_PROFILE": "lent"}):
        assert (os.environ["AWS_REGION"], os.environ["AWS_PROFILE"]) == ("lent", "lent")
    assert os.environ["AWS_REGION"] == "before"
    assert "AWS_PROFILE" not in os.environ
