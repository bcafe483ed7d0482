"""A feature of vLLM that reports other log-probabilities than the model's is refused by name, whatever its door."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from types import SimpleNamespace

import pytest

from actors import engine_features
from actors.config import EngineConfig
from actors.engine_features import check_engine, check_folder
from actors.vllm_arguments import engine_arguments, engine_config
from curriculum.errors import UserError

BASE = Path(__file__).parents[3] / "recipes" / "assets" / "local_base"


def folder(path: Path, **keys: object) -> str:
    config = json.loads((BASE / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | keys))
    return str(path)


def test_a_plain_folder_and_a_plain_engine_pass(tmp_path):
    check_folder(folder(tmp_path), key="model.path")
    check_engine(plain(), "a/b")


@pytest.mark.parametrize(
    ("keys", "feature"),
    [
        ({"speculators_config": {"algorithm": "eagle3"}}, r"speculative decoding \(speculators_config"),
        ({"quantization_config": {"quant_method": "fp8"}}, r"quantised weights \(quantization_config"),
        ({"dual_chunk_attention_config": {"chunk_size": 8}}, r"dual chunk attention \(dual_chunk_attention_config"),
    ],
)
def test_what_a_folder_switches_on_is_refused_in_one_line_before_anything_is_loaded(tmp_path, keys, feature):
    model = folder(tmp_path, **keys)
    with pytest.raises(UserError, match=rf"^model\.path='.*': vLLM would use {feature} in its config.json\)") as caught:
        check_folder(model, key="model.path")
    assert caught.value.lines[0].endswith("take the plain model")


def test_weights_that_only_a_file_beside_the_configuration_calls_quantised_are_refused(tmp_path):
    model = folder(tmp_path)
    (tmp_path / "hf_quant_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"quantised weights \(hf_quant_config.json\)"):
        check_folder(model, key="model.path")


def plain(**changes):
    """The parts of a `VllmConfig` that are looked at, all off."""
    values = {
        "quantization": None,
        "logits_processors": None,
        "hf_text_config": SimpleNamespace(),
        "cache_dtype": "auto",
        "speculative_config": None,
        "watermark_config": None,
    } | changes
    model = SimpleNamespace(**{name: values.pop(name) for name in ("quantization", "logits_processors")})
    model.hf_text_config = values.pop("hf_text_config")
    cache = SimpleNamespace(cache_dtype=values.pop("cache_dtype"))
    return SimpleNamespace(model_config=model, cache_config=cache, **values)


@pytest.mark.parametrize(
    ("changes", "feature"),
    [
        ({"speculative_config": SimpleNamespace(method="ngram")}, r"speculative decoding \(ngram\)"),
        ({"quantization": "awq"}, r"quantised weights \(awq\)"),
        ({"cache_dtype": "fp8"}, r"a KV cache of another type than the model \(fp8\)"),
        ({"hf_text_config": SimpleNamespace(dual_chunk_attention_config={})}, "dual chunk attention"),
        ({"logits_processors": ["a:B"]}, "logits processors of a package"),
        ({"watermark_config": object()}, "a watermark"),
    ],
)
def test_an_engine_with_such_a_feature_does_not_start(changes, feature):
    with pytest.raises(UserError, match=f"^model 'a/b': vLLM would use {feature}.*; switch it off") as caught:
        check_engine(plain(**changes), "a/b")
    assert len(caught.value.lines) == 1


def test_a_package_that_changes_logits_by_being_installed_is_named(monkeypatch):
    entry = EntryPoint(name="x", value="stranger:Processor", group="vllm.logits_processors")
    monkeypatch.setattr(engine_features, "entry_points", lambda group: EntryPoints([entry]).select(group=group))
    with pytest.raises(UserError, match=r"logits processors of a package \(stranger:Processor\)"):
        check_engine(plain(), "a/b")


def arguments(model, **changes):
    found = engine_arguments(
        model, EngineConfig(dtype="fp32", enforce_eager=True), max_model_len=512, seed=0, on_gpu=False,
        trust_remote_code=False, fp32_logits=True,
    )  # fmt: skip
    return found | changes


def test_vllm_itself_finds_the_features_where_the_check_looks_for_them():
    """Its own configuration, so that a renamed field fails here and not in a run."""
    engine_config(arguments(str(BASE)), is_compared=True)
    ngram = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
    for changes, feature in (
        ({"speculative_config": ngram}, r"speculative decoding \(ngram\)"),
        ({"logits_processors": ["actors.engine_features:check_engine"]}, "logits processors"),
        ({"hf_overrides": {"dual_chunk_attention_config": {"chunk_size": 8}}}, "dual chunk attention"),
    ):
        with pytest.raises(UserError, match=feature):
            engine_config(arguments(str(BASE), **changes), is_compared=True)
    assert engine_config(arguments(str(BASE), speculative_config=ngram), is_compared=False), "as for a judge"


def test_no_argument_of_an_engine_is_taken_from_the_recipe_unseen():
    """Whoever adds a setting of the engine decides whether its log-probabilities are still the model's."""
    assert set(EngineConfig.model_fields) == {
        "tensor_parallel_size",
        "dtype",
        "gpu_memory_utilization",
        "cpu_kv_cache_bytes",
        "max_num_seqs",
        "max_num_batched_tokens",
        "enforce_eager",
    }


def test_generation_settings_of_a_folder_do_not_reach_the_engine():
    assert arguments(str(BASE))["generation_config"] == "vllm"
    assert arguments(str(BASE))["logprobs_mode"] == "processed_logprobs"
