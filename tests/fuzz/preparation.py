"""What a process of the fuzzer does once: load the libraries, go offline, and stop where Ray would start."""

from __future__ import annotations

import importlib
import os
from typing import Any

from tests.fuzz.command import WouldStart

LIBRARIES = (
    "transformers", "transformers.models.auto.tokenization_auto", "openai", "pyarrow.parquet", "safetensors",
    "rich.console", "evaluation.evaluate", "evaluation.distill", "cluster.recipe.preparation",
    "cluster.recipe.inspection", "reward.score_command", "reward.judge_report_command", "datasets",
)  # fmt: skip


def prepare_process() -> None:
    """Prepare this process; those that it forks inherit it."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}
    os.environ.pop("RAY_ADDRESS", None)
    os.environ.pop("OPENAI_API_KEY", None)
    for library in LIBRARIES:
        importlib.import_module(library)
    train: Any = importlib.import_module("cluster.train")
    train.ray_session = _would_start
    chat: Any = importlib.import_module("reward.chat_endpoint")
    chat.FIRST_BACKOFF_S = 0.001  # no trial waits for a pause between two attempts


def _would_start(*_: Any) -> Any:
    raise WouldStart
