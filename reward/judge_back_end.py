"""The back end of a judge, from its configuration or the command line: the one place that knows every kind."""

from __future__ import annotations

import json
import os
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from reward.config import JudgeConfig, NoJudge, OpenAIJudge, VllmJudge

if TYPE_CHECKING:
    from reward.judge_endpoint import OpenAIJudgeClient
    from reward.judge_engine import VllmJudgeEngine

    JudgeBackEnd = OpenAIJudgeClient | VllmJudgeEngine

DEFAULT_MODEL = VllmJudge().model
API_KEY_ENV = "OPENAI_API_KEY"
LISTING_TIMEOUT_S = 10.0
"""Longest wait for the list of models of an endpoint."""
OWN_ENGINE_TIMEOUT_S = 3600.0
"""Longest wait of a command for an engine of its own, which serves nothing else."""
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def open_judge(config: JudgeConfig, *, on_gpu: bool) -> JudgeBackEnd | None:
    """Open the back end of a judge; return None where there is no judge. The caller closes it.

    A vLLM engine must be opened inside the event loop that uses it.
    """
    if isinstance(config, NoJudge):
        return None
    if isinstance(config, OpenAIJudge):
        from reward.judge_endpoint import OpenAIJudgeClient

        return OpenAIJudgeClient(config)
    from reward.judge_engine import VllmJudgeEngine

    return VllmJudgeEngine(config, on_gpu=on_gpu)


@asynccontextmanager
async def judge_session(config: JudgeConfig, *, on_gpu: bool) -> AsyncGenerator[JudgeBackEnd | None]:
    """Open the back end of a judge for the length of a block; None where there is no judge."""
    judge = open_judge(config, on_gpu=on_gpu)
    try:
        yield judge
    finally:
        if judge is not None:
            await judge.close()


def judge_config(judge: str, *, model: str | None = None) -> JudgeConfig:
    """Return the judge that a command line names: "none", the URL of an endpoint, or a model folder or hub id for vLLM.

    `model` names the model behind an endpoint. Without it the endpoint is asked: the only model it serves is taken,
    or the default judge's where it does not answer.

    Raises:
        ValueError: there is no such judge.
    """
    is_url = judge.startswith(("http://", "https://"))
    if model is not None and not is_url:
        raise ValueError(f"--judge-model {model}: only with --judge URL; --judge is {judge}")
    if judge == "none":
        return NoJudge()
    if is_url:
        url = endpoint_root(judge)
        return OpenAIJudge(base_url=url, model=model or served_model(url), api_key_env=API_KEY_ENV)
    folder = Path(judge).expanduser()
    if not judge or not (folder.is_dir() or _HUB_ID.fullmatch(judge)):
        raise ValueError(f"--judge {judge!r}: give none, a URL, a model folder that exists, or a hub id (owner/name)")
    default = VllmJudge()
    max_model_len = min(default.max_model_len, _max_positions(folder) or default.max_model_len)
    return VllmJudge(
        model=str(folder) if folder.is_dir() else judge,
        max_model_len=max_model_len,
        max_tokens=min(default.max_tokens, max_model_len // 4),
        timeout_s=OWN_ENGINE_TIMEOUT_S,
    )


def _max_positions(folder: Path) -> int | None:
    """Return the longest sequence of a model folder, in tokens; None where its configuration does not say."""
    try:
        positions = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("max_position_embeddings")
    except (OSError, ValueError, AttributeError):
        return None
    return positions if isinstance(positions, int) and positions > 3 else None


def endpoint_root(url: str) -> str:
    """Return the root of an OpenAI-compatible API: with `/v1` where the URL has no path, without a method's path."""
    url = url.rstrip("/").removesuffix("/chat/completions")
    return f"{url}/v1" if url.count("/") == 2 else url


def served_model(url: str) -> str:
    """Return the only model that an endpoint serves, or the default judge where it serves that or does not answer.

    Raises:
        ValueError: it serves several others.
    """
    from openai import OpenAI, OpenAIError

    try:
        key = os.environ.get(API_KEY_ENV) or "none"
        with OpenAI(base_url=url, api_key=key, timeout=LISTING_TIMEOUT_S, max_retries=0) as client:
            names = [model.id for model in client.models.list().data]
    except (OpenAIError, OSError, ValueError, AttributeError, TypeError):
        return DEFAULT_MODEL
    if not names or DEFAULT_MODEL in names:
        return DEFAULT_MODEL
    if len(names) > 1:
        raise ValueError(f"--judge {url}: it serves {', '.join(names)}; choose one with --judge-model")
    return names[0]


def gpu_is_there() -> bool:
    """Return whether this machine has an NVIDIA device, without loading CUDA."""
    return Path("/dev/nvidiactl").exists()
