import json
from pathlib import Path

import pytest

from actors.model_folder import context_length, folder_or_hub_id
from curriculum.errors import UserError

BASE = Path(__file__).parents[3] / "recipes" / "assets" / "local_base"


def test_a_folder_becomes_absolute_and_a_hub_id_stays(tmp_path, monkeypatch):
    (tmp_path / "models" / "small").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert folder_or_hub_id("models/small", key="model.path") == str(tmp_path / "models" / "small")
    assert folder_or_hub_id("Qwen/Qwen3-8B", key="model.path") == "Qwen/Qwen3-8B"


@pytest.mark.parametrize("model", ["", "./gone", "~/gone", "/gone/model", "gpt-4", "a/b/c", "ftp://host/v1", "x" * 300])
def test_anything_else_is_refused_with_its_key(model):
    with pytest.raises(UserError, match=r"^--judge='.*(no such folder; give none, a Hugging Face|File name too long)"):
        folder_or_hub_id(model, key="--judge", others="none, ")


def test_a_file_is_no_model_even_if_it_is_named_like_a_hub_id(tmp_path, monkeypatch):
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "model").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="is a file; give a Hugging Face folder"):
        folder_or_hub_id("owner/model", key="model.path")


def with_config(tmp_path, **changes):
    config = json.loads((BASE / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 100, **changes}))
    return str(tmp_path)


def test_the_context_length_is_that_of_the_configuration(tmp_path):
    assert context_length(with_config(tmp_path), key="model.path") == 100


def test_rope_scaling_extends_the_context(tmp_path):
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 100, "rope_theta": 10000.0}
    assert context_length(with_config(tmp_path, rope_parameters=rope), key="model.path") == 400


def test_a_folder_without_a_configuration_is_told_with_its_key(tmp_path):
    with pytest.raises(
        UserError, match=r"^reward\.judge\.model='.*': no model configuration can be read there"
    ) as caught:
        context_length(str(tmp_path), key="reward.judge.model")
    assert "\n" not in str(caught.value)
