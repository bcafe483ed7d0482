"""Weights from the files of a model: all of them, none by chance, and only the stretch that is asked for."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from curriculum.errors import UserError
from learner.zero3.model_weights import fill
from learner.zero3.policy import load_policy

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
KINDS = {"qwen2": Qwen2Config, "qwen3": Qwen3Config, "llama": LlamaConfig}
HEAD, EMBEDDING, NORM = "lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"


def make_model(folder: Path, kind="qwen2", *, tied=True, **options):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(KINDS[kind](**SHAPE, tie_word_embeddings=tied))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    model.save_pretrained(folder, **options)
    return folder


@pytest.fixture
def model(tmp_path):
    return make_model(tmp_path / "model")


def change(folder, **tensors):
    """Rewrite the file of weights with other tensors; one that is None is left out."""
    kept = load_file(folder / "model.safetensors") | tensors
    save_file({name: tensor for name, tensor in kept.items() if tensor is not None}, folder / "model.safetensors")


def load(folder, dtype=torch.float32, *, trust_remote_code=False):
    options = {"dtype": dtype, "trust_remote_code": trust_remote_code}
    return load_policy(str(folder), **options).causal_lm


def refusal(folder):
    with pytest.raises(UserError) as caught:
        load(folder)
    (line,) = caught.value.lines
    return line


def assert_equal_to_transformers(folder, dtype):
    random_state = torch.get_rng_state()
    ours = load(folder, dtype)
    assert torch.equal(torch.get_rng_state(), random_state)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    for ours_of, theirs_of in ((ours.parameters, theirs.parameters), (ours.buffers, theirs.buffers)):
        for own, other in zip(ours_of(), theirs_of(), strict=True):
            assert own.dtype == other.dtype
            assert torch.equal(own, other)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_has_the_weights_buffers_and_names_that_transformers_gives_it(tmp_path, kind, tied, dtype):
    assert_equal_to_transformers(make_model(tmp_path, kind, tied=tied), dtype)


def test_weights_may_lie_in_several_files(tmp_path):
    make_model(tmp_path, tied=False, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_equal_to_transformers(tmp_path, torch.bfloat16)


def test_bf16_files_give_an_fp32_model_the_same_values(tmp_path):
    make_model(tmp_path)
    AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).save_pretrained(tmp_path)
    assert_equal_to_transformers(tmp_path, torch.float32)


def test_tied_weights_may_be_stored_under_either_name_or_both(model):
    embedding = load_file(model / "model.safetensors")[EMBEDDING]
    for head, embedding_too in ((embedding, None), (embedding, embedding.clone())):
        change(model, **{HEAD: head, EMBEDDING: embedding_too})
        found = load(model)
        assert found.lm_head.weight is found.model.embed_tokens.weight
        assert torch.equal(found.lm_head.weight, embedding)


def test_tied_weights_that_differ_are_refused(model):
    change(model, **{HEAD: torch.zeros(97, 32)})
    assert f"{HEAD} with other values than {EMBEDDING}, to which it is tied; use the config.json that" in refusal(model)


def test_a_weight_that_is_missing_is_named_and_never_made_up(model):
    change(model, **{NORM: None, "model.layers.1.self_attn.q_proj.bias": None})
    line = refusal(model)
    assert f"model '{model}': its files do not hold the weights of the model in its config.json" in line
    assert f"no model.layers.1.self_attn.q_proj.bias, no {NORM}; use the config.json that belongs to them" in line


def test_a_head_that_is_missing_is_no_random_one(tmp_path):
    change(make_model(tmp_path, tied=False), **{HEAD: None})
    assert f"config.json: no {HEAD};" in refusal(tmp_path)


def test_a_weight_that_the_model_does_not_have_is_named(model):
    change(model, **{"model.layers.2.input_layernorm.weight": torch.ones(32)})
    assert "model.layers.2.input_layernorm.weight, which it does not have" in refusal(model)


def test_a_weight_of_another_shape_is_named_with_both_shapes(model):
    change(model, **{EMBEDDING: torch.zeros(100, 32)})
    assert f"{EMBEDDING} of shape [100, 32] instead of [97, 32]" in refusal(model)


def test_of_many_faults_three_are_named(tmp_path):
    make_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"model_type": "qwen3", "architectures": None, "head_dim": 8})
    )
    assert " and 7 more; use the config.json" in refusal(tmp_path)


def test_rotary_frequencies_in_old_files_are_passed_over(model):
    change(model, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)})
    load(model)


def test_weights_that_are_no_safetensors_are_refused_with_the_way_out(model):
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    assert "no weights (*.safetensors) in the folder; download the whole model, or save it once with" in refusal(model)


@pytest.mark.parametrize("index", ["{", "[]", '{"weight_map": 3}', "{}"])
def test_an_index_that_names_no_files_is_refused(model, index):
    (model / "model.safetensors").rename(model / "other.safetensors")
    (model / "model.safetensors.index.json").write_text(index)
    assert "model.safetensors.index.json is no index of weights; download the model again" in refusal(model)


def test_a_file_of_the_index_that_is_not_there_is_named(tmp_path):
    make_model(tmp_path, max_shard_size="20KB")
    sorted(tmp_path.glob("*.safetensors"))[1].unlink()
    assert "model-00002-of-" in refusal(tmp_path)


def test_a_file_that_was_cut_is_named(model):
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "model.safetensors cannot be read" in refusal(model)


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 7])
def test_the_parts_of_all_ranks_make_up_a_tensor_and_the_rest_is_zero(num_ranks):
    stored = torch.arange(1, 36, dtype=torch.float32).view(5, 7)
    length = -(-stored.numel() // num_ranks)
    parts = torch.full((num_ranks, length), float("nan"), dtype=torch.bfloat16)
    for rank, part in enumerate(parts):
        fill(part, rank * length, stored)
    assert parts.flatten()[:35].tolist() == stored.flatten().tolist()
    assert not parts.flatten()[35:].any()


def test_a_rank_beyond_the_end_of_a_tiny_tensor_holds_zeros():
    part = torch.ones(1)
    fill(part, 5, torch.ones(3))
    assert part.item() == 0.0


CODE = """
import torch
from torch import nn
from transformers import Qwen2ForCausalLM


class Scaled(Qwen2ForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("scale", torch.ones(3))
        self.register_buffer("steps", torch.arange(4.0), persistent=False)
        self.gain = nn.Parameter(torch.zeros(2, dtype=torch.float32))
"""


def test_code_that_comes_with_a_model_may_have_parameters_and_buffers_of_its_own(model):
    (model / "modeling_scaled.py").write_text(CODE)
    config = json.loads((model / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_scaled.Scaled"}
    (model / "config.json").write_text(json.dumps(config))
    change(model, scale=torch.tensor([1.0, 2.0, 3.0]), gain=torch.tensor([4.0, 5.0]))
    found = load(model, torch.bfloat16, trust_remote_code=True)
    assert type(found).__name__ == "Scaled"
    assert found.is_remote_code()
    assert found.scale.tolist() == [1.0, 2.0, 3.0]
    assert found.steps.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert found.gain.tolist() == [4.0, 5.0]
    assert {parameter.dtype for parameter in found.parameters()} == {torch.bfloat16}


def test_a_hub_id_is_read_from_the_cache(tmp_path, monkeypatch):
    from transformers import AutoConfig

    from learner.zero3.model_weights import stored_weights

    model = make_model(tmp_path / "model", max_shard_size="20KB")
    cached = tmp_path / "cache" / "models--owner--name"
    shutil.copytree(model, cached / "snapshots" / "0123")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
    expected = load(model).state_dict()
    assert all(torch.equal(expected[name], found) for name, found in stored_weights(empty, "owner/name").items())
    with pytest.raises(UserError, match=r"model 'owner/other': no weights can be had from the hub"):
        stored_weights(empty, "owner/other")
