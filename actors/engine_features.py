"""Features of vLLM whose log-probabilities are not those of the model that the learner computes with.

No recipe switches one on. They come with a model's folder, with a package beside vLLM, or with its environment.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from curriculum.errors import UserError

_PLUGINS = "vllm.logits_processors"
"""Entry points of packages whose code vLLM runs over the logits, without being asked."""
_FOLDER_KEYS = {
    "speculators_config": "speculative decoding",
    "quantization_config": "quantised weights",
    "dual_chunk_attention_config": "dual chunk attention",
}
"""What a key of config.json switches on."""
_FOLDER_FILES = {"hf_quant_config.json": "quantised weights"}


def check_folder(model: str, *, key: str) -> None:
    """Check that a model's folder switches none of these features on, before anything is loaded.

    Args:
        model: folder or hub id whose configuration can be read; files beside it are looked for in a folder only.
        key: recipe key that names it, for messages.

    Raises:
        UserError: it does.
    """
    from transformers import PreTrainedConfig

    configuration: Any = PreTrainedConfig
    config: dict[str, Any] = configuration.get_config_dict(model)[0]
    found = {f"{name} in its config.json": what for name, what in _FOLDER_KEYS.items() if config.get(name)}
    found |= {name: what for name, what in _FOLDER_FILES.items() if (Path(model) / name).is_file()}
    for where, what in found.items():
        raise UserError(f"{key}={model!r}: {_refusal(f'{what} ({where})')}; take the plain model")


def check_engine(config: Any, model: str) -> None:
    """Check that vLLM's configuration of an engine has none of these features, before the engine starts.

    Args:
        config: `vllm.config.VllmConfig`.
        model: folder or hub id, for messages.

    Raises:
        UserError: it has one.
    """
    feature = _feature(config)
    if feature is not None:
        raise UserError(f"model {model!r}: {_refusal(feature)}; switch it off, or take the plain model")


def _refusal(feature: str) -> str:
    return f"vLLM would use {feature}, with which its log-probabilities are not those of the model that is trained"


def _feature(config: Any) -> str | None:
    """Return the name of the first such feature that is on; None if none is."""
    model, cache = config.model_config, config.cache_config
    speculation = config.speculative_config
    plugins = sorted(entry.value for entry in entry_points(group=_PLUGINS))
    found = {
        f"speculative decoding ({getattr(speculation, 'method', None)})": speculation is not None,
        f"quantised weights ({model.quantization})": model.quantization is not None,
        f"a KV cache of another type than the model ({cache.cache_dtype})": cache.cache_dtype != "auto",
        "dual chunk attention": getattr(model.hf_text_config, "dual_chunk_attention_config", None) is not None,
        f"logits processors of a package ({', '.join(plugins)})": bool(plugins or model.logits_processors),
        "a watermark": config.watermark_config is not None,
    }
    return next((name for name, is_on in found.items() if is_on), None)
