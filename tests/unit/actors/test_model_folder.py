import json
from pathlib import Path

import pytest

from actors.model_folder import context_length, folder_or_hub_id, model_digest, num_parameters
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


def model_folder(tmp_path, name="model", **files):
    folder = tmp_path / name
    folder.mkdir()
    content = {"config.json": b"{}", "model.safetensors": b"weights", "tokenizer.json": b"[]", "README.md": b"hello"}
    for file, text in {**content, **files}.items():
        (folder / file).write_bytes(text)
    return str(folder)


def test_the_same_files_have_the_same_digest_wherever_they_are(tmp_path):
    assert model_digest(model_folder(tmp_path, "a")) == model_digest(model_folder(tmp_path, "b"))


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"])
def test_a_changed_or_an_added_file_changes_the_digest(tmp_path, file):
    changed = model_digest(model_folder(tmp_path, "b", **{file: b"other"}))
    assert model_digest(model_folder(tmp_path, "a")) != changed


def test_what_is_no_part_of_a_model_does_not_count(tmp_path):
    read = model_digest(model_folder(tmp_path, "b", **{"README.md": b"new words"}))
    assert model_digest(model_folder(tmp_path, "a")) == read


@pytest.mark.parametrize("position", [0, 500_000, 999_999])
def test_large_weights_are_told_apart_by_samples_from_their_first_to_their_last_byte(tmp_path, monkeypatch, position):
    monkeypatch.setattr("actors.model_folder.WHOLE_BYTES", 1000)
    monkeypatch.setattr("actors.model_folder._SAMPLE_BYTES", 1 << 13)
    weights = bytearray(1_000_000)
    before = model_digest(model_folder(tmp_path, "a", **{"model.safetensors": bytes(weights)}))
    weights[position] = 1
    assert model_digest(model_folder(tmp_path, "b", **{"model.safetensors": bytes(weights)})) != before


def test_a_model_of_the_hub_is_its_commit(tmp_path, monkeypatch):
    commit = tmp_path / "models--owner--model" / "snapshots" / "abc123"
    commit.mkdir(parents=True)
    (commit / "config.json").write_text("{}")
    (tmp_path / "models--owner--model" / "refs").mkdir()
    (tmp_path / "models--owner--model" / "refs" / "main").write_text("abc123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert model_digest("owner/model") == "abc123"
    assert model_digest("owner/other") == "owner/other"


def test_the_weights_of_a_folder_are_counted_from_their_headers():
    assert num_parameters(str(BASE)) == 139_712
    assert num_parameters("owner/model") is None
