"""The settings with which the product starts the libraries on GPUs, by name."""

from __future__ import annotations

import ast
import re
import sys
from types import ModuleType
from typing import Any
from unittest.mock import patch

from actors.config import EngineConfig
from actors.vllm_arguments import engine_arguments
from learner.config import LearnerConfig
from learner.zero3.config import zero3_config, zero3_frozen_config
from tests.conformance.uses import ROOT, product_sources


def engine_settings() -> set[str]:
    """Arguments of vLLM's engine on a GPU. The class of one of their values is the only thing needed of vLLM."""
    config = ModuleType("vllm.config")
    config.WeightTransferConfig = dict  # type: ignore[attr-defined]
    with patch.dict(sys.modules, {"vllm": ModuleType("vllm"), "vllm.config": config}):
        return set(
            engine_arguments(
                str(ROOT / "recipes" / "assets" / "local_base"),
                EngineConfig(),
                max_model_len=100,
                seed=0,
                on_gpu=True,
                trust_remote_code=False,
                fp32_logits=True,
            )
        )


def deepspeed_settings() -> dict[str, set[str]]:
    """Keys of DeepSpeed's configuration on a GPU with everything switched on, by section; "" for the outermost."""
    everything = LearnerConfig(
        num_ranks=4,
        dtype="bf16",
        ranks_per_copy=2,
        gradient_checkpointing=True,
        offload=("optimizer", "parameters", "activations"),
    )
    found: dict[str, set[str]] = {}
    for settings in (zero3_config(everything, on_gpu=True), zero3_frozen_config(everything, on_gpu=True)):
        _collect(settings, "", found)
    return found


def _collect(settings: dict[str, Any], section: str, found: dict[str, set[str]]) -> None:
    found.setdefault(section, set()).update(settings)
    for key, value in settings.items():
        if isinstance(value, dict):
            _collect(value, f"{section}.{key}".lstrip("."), found)


def vllm_variables() -> set[str]:
    """Environment variables of vLLM that the product sets or reads."""
    texts = (node.value for _, source in product_sources() for node in ast.walk(ast.parse(source)) if _is_text(node))
    return {text for text in texts if re.fullmatch(r"VLLM_[A-Z0-9_]+", text)}


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)
