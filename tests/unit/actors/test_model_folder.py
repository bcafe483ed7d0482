import json
from pathlib import Path

import pytest

from actors.model_folder import context_length, folder_or_hub_id, model_digest, num_parameters, yarn_length
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


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 100}


@pytest.mark.parametrize(
    ("changes", "length"),
    [
        ({"rope_parameters": None}, 100),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 400),
        ({"rope_scaling": {"type": "dynamic", "factor": 2}}, 200),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, 400),
        ({"rope_parameters": {**YARN, "factor": None}}, 100),
        ({"rope_parameters": YARN, "max_position_embeddings": 400}, 400),
        ({"rope_parameters": {"full_attention": YARN, "sliding_attention": {"rope_type": "default"}}}, 400),
        (
            {
                "rope_parameters": {
                    **YARN,
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 50,
                }
            },
            100,
        ),
    ],
)
def test_every_kind_of_rope_scaling_gives_the_length_that_the_engine_takes(tmp_path, changes, length):
    assert context_length(with_config(tmp_path, **changes), key="model.path") == length


def test_only_a_model_with_yarn_needs_its_length_told_to_the_engine(tmp_path):
    assert yarn_length(with_config(tmp_path, rope_parameters=YARN)) == 400
    assert yarn_length(with_config(tmp_path, rope_parameters={"rope_type": "linear", "factor": 4.0})) is None
    assert yarn_length(str(BASE)) is None


def test_a_nested_configuration_of_text_is_read_and_gemma_states_the_scaled_length(tmp_path):
    text = {
        "model_type": "gemma3_text",
        "max_position_embeddings": 131072,
        "rope_scaling": {"factor": 8.0, "type": "linear"},
    }
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text}))
    assert context_length(str(tmp_path), key="model.path") == 131072


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_parameters": {**YARN, "factor": "4.0"}}, "the rope factor is '4.0', not a number from 1 on"),
        ({"rope_parameters": {**YARN, "factor": 0.5}}, "the rope factor is 0.5"),
        ({"rope_scaling": "yarn"}, "rope_parameters in its config.json holds something else"),
        ({"max_position_embeddings": "4096"}, "max_position_embeddings in its config.json holds something else"),
        ({"max_position_embeddings": -1}, "max_position_embeddings is -1, not a number from 2 on"),
    ],
)
def test_lengths_and_factors_that_are_no_numbers_are_one_clear_line(tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        context_length(with_config(tmp_path, **changes), key="model.path")
    assert "\n" not in str(caught.value)


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
