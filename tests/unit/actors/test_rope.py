"""YaRN by one key: the same rope for everyone who loads or writes a model, or one line why it cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from actors.config import EngineConfig, YarnConfig
from actors.model_folder import config_overrides, context_length
from actors.rope import set_in_file
from actors.vllm_arguments import engine_arguments
from curriculum.errors import UserError
from learner.zero3.model_files import copy_model_files

YARN = YarnConfig(factor=4, original_max_tokens=64)
QWEN = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 64,
    "rope_theta": 1e6,
}
"""As published folders have it: `rope_theta` beside the other keys, no `rope_parameters`."""
DOCUMENTED = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
"""The form of Qwen's documentation."""


def folder(path: Path, **changes: object) -> str:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({**QWEN, **changes}))
    return str(path)


def overrides(model: str, yarn: YarnConfig = YARN) -> dict:
    return config_overrides(model, yarn)


def test_the_rope_keeps_its_base_and_the_length_is_the_one_after_scaling(tmp_path):
    assert overrides(folder(tmp_path)) == {
        "rope_parameters": {**DOCUMENTED, "rope_theta": 1e6},
        "max_position_embeddings": 256,
    }
    assert context_length(folder(tmp_path), key="model.path", yarn=YARN) == 256


def test_a_model_that_states_a_longer_length_is_scaled_from_the_original_one(tmp_path):
    """Base models of Qwen2.5 state 131,072 positions, and were trained on 32,768."""
    stated = folder(tmp_path, max_position_embeddings=1024)
    assert context_length(stated, key="model.path", yarn=YARN) == 256


def test_the_numbers_of_qwen_2_5_give_131072_tokens(tmp_path):
    yarn = YarnConfig(factor=4, original_max_tokens=32768)
    assert overrides(folder(tmp_path, max_position_embeddings=32768), yarn)["max_position_embeddings"] == 131072


def test_engine_learner_and_exported_folder_have_the_same_rope(tmp_path):
    model = folder(tmp_path / "base")
    arguments = engine_arguments(
        model, EngineConfig(), max_model_len=256, seed=0, on_gpu=False, trust_remote_code=False, yarn=YARN
    )
    (tmp_path / "files").mkdir()
    copy_model_files(model, tmp_path / "files", dtype="float32", with_code=False, overrides=overrides(model))
    learner = AutoConfig.from_pretrained(model, **overrides(model))
    exported = AutoConfig.from_pretrained(tmp_path / "files")
    assert arguments["hf_overrides"]["rope_parameters"] == learner.rope_parameters == exported.rope_parameters
    assert arguments["hf_overrides"]["max_position_embeddings"] == 256
    assert learner.max_position_embeddings == exported.max_position_embeddings == 256


def test_the_frequencies_of_the_learner_are_those_of_the_engine(tmp_path):
    """Both libraries compute them anew: a wrong base, factor or length would part them."""
    from vllm.model_executor.layers.rotary_embedding.yarn_scaling_rope import YaRNScalingRotaryEmbedding

    config = Qwen2Config(**QWEN)
    config.update(overrides(folder(tmp_path)))
    ours, scale = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))
    theirs = YaRNScalingRotaryEmbedding.__new__(YaRNScalingRotaryEmbedding)
    theirs.__dict__.update(
        base=1e6, rotary_dim=16, max_position_embeddings=64, beta_fast=32, beta_slow=1, truncate=True
    )
    assert torch.equal(ours, theirs._compute_inv_freq(4.0))
    assert scale == pytest.approx(0.1 * torch.tensor(4.0).log().item() + 1)
    assert not torch.allclose(ours, 1 / 1e6 ** (torch.arange(0, 16, 2) / 16))


def test_an_exported_folder_keeps_the_keys_that_older_versions_read(tmp_path):
    published = dict(QWEN)
    set_in_file(published, overrides(folder(tmp_path)))
    assert published["rope_theta"] == 1e6
    assert published["rope_scaling"] == DOCUMENTED
    assert published["max_position_embeddings"] == 256
    assert "rope_parameters" not in published

    recent = {name: value for name, value in QWEN.items() if name != "rope_theta"}
    set_in_file(recent, overrides(folder(tmp_path)))
    assert recent["rope_parameters"] == {**DOCUMENTED, "rope_theta": 1e6}
    assert "rope_scaling" not in recent


def test_a_folder_with_the_same_yarn_stays_as_it_is(tmp_path):
    """The model of an earlier stage is loaded with the key of the run that wrote it."""
    for positions in (64, 256):
        trained = folder(tmp_path, rope_scaling=DOCUMENTED, max_position_embeddings=positions)
        assert overrides(trained)["rope_parameters"] == {**DOCUMENTED, "rope_theta": 1e6}
        assert overrides(trained)["max_position_embeddings"] == 256


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"model_type": "gpt2"}, r"a model of type gpt2 has no rope \(rope_parameters\)"),
        ({"model_type": "bloom"}, "a model of type bloom has no rope"),
        ({"model_type": "gemma3_text"}, "a model of type gemma3_text has no rope"),
        ({"rope_scaling": LLAMA3}, "its config.json has a rope of rope_type=llama3 already"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "its config.json has a rope of rope_type=linear already"),
        (
            {"rope_scaling": {**DOCUMENTED, "factor": 2.0}},
            "its config.json has YaRN with factor=2.0 and original_max_position_embeddings=64 already; give",
        ),
        ({"max_position_embeddings": 63}, "original_max_tokens is more than its max_position_embeddings=63"),
        (
            {"original_max_position_embeddings": 32},
            "its config.json has original_max_position_embeddings=32, which would",
        ),
        ({"dual_chunk_attention_config": {"chunk_size": 8}}, "its config.json has dual_chunk_attention_config"),
        (
            {
                "layer_types": ["full_attention", "sliding_attention"],
                "rope_parameters": {
                    "full_attention": {"rope_type": "default", "rope_theta": 1e6},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                },
            },
            "a model of type qwen2 has a rope for each kind of layer",
        ),
    ],
)
def test_a_model_that_takes_no_yarn_is_one_line_with_key_value_and_way_out(tmp_path, changes, why):
    model = folder(tmp_path, **changes)
    with pytest.raises(UserError, match=why) as caught:
        context_length(model, key="model.path", yarn=YARN)
    (line,) = caught.value.lines
    assert line.startswith(f"model.path='{model}' with yarn={{factor: 4, original_max_tokens: 64}}: ")
    assert "leave the key out" in line


@pytest.mark.parametrize("form", ["folder", "override", "override without the base"])
def test_why_the_documented_form_does_not_reach_vllm(tmp_path, form):
    """vLLM 0.32 takes `max_position_embeddings` for the scaled length; and an override loses the base of the rope."""
    from vllm.config import ModelConfig

    common = {"max_model_len": 256, "skip_tokenizer_init": True, "dtype": "float32"}
    if form == "override without the base":
        lost = {"rope_scaling": DOCUMENTED, "max_position_embeddings": 256}
        config = ModelConfig(folder(tmp_path), hf_overrides=lost, **common).hf_config
        assert "rope_theta" not in config.rope_parameters, "10,000 would be taken for it"
        return
    inside = {"rope_scaling": DOCUMENTED}
    model, given = (folder(tmp_path, **inside), {}) if form == "folder" else (folder(tmp_path), inside)
    with pytest.raises(ValueError, match=r"greater than the derived max_model_len \(max_position_embeddings=64"):
        ModelConfig(model, hf_overrides=given, **common)
    whole = overrides(model)
    accepted = ModelConfig(model, hf_overrides=whole, **common)
    assert accepted.max_model_len == 256
    assert accepted.hf_config.rope_parameters == whole["rope_parameters"]


def test_transformers_builds_the_model_with_the_overrides(tmp_path):
    model = AutoModelForCausalLM.from_config(Qwen2Config(**QWEN))
    model.save_pretrained(tmp_path / "saved")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", **overrides(str(tmp_path / "saved")))
    assert loaded.model.rotary_emb.rope_type == "yarn"
    assert loaded.config.rope_parameters["rope_theta"] == 1e6
