"""Which judge is meant, and how it is opened: the one place that knows all back ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from actors.model_folder import context_length, folder_or_hub_id
from curriculum.config import checked
from curriculum.errors import UserError
from reward.chat_endpoint import NoReplyError, endpoint_root, is_url, served_models
from reward.config import JudgeConfig, JudgeEngineConfig, NoJudge, OpenAIJudge, VllmJudge

if TYPE_CHECKING:
    from reward.judge_endpoint import OpenAIJudgeClient
    from reward.judge_engine import VllmJudgeEngine

    JudgeBackEnd = OpenAIJudgeClient | VllmJudgeEngine

DEFAULT_MODEL = VllmJudge().model
OWN_ENGINE_TIMEOUT_S = 3600.0
"""Patience of a command with an engine of its own: nobody else waits for it."""


def open_judge(config: JudgeConfig, *, on_gpu: bool) -> JudgeBackEnd | None:
    """The back end of a judge, ready to be asked; None where there is no judge. Close it when done.

    A vLLM engine must be opened inside the event loop that asks it.
    """
    if isinstance(config, NoJudge):
        return None
    if isinstance(config, OpenAIJudge):
        from reward.judge_endpoint import OpenAIJudgeClient

        return OpenAIJudgeClient(config)
    from reward.judge_engine import VllmJudgeEngine

    return VllmJudgeEngine(config, on_gpu=on_gpu)


@asynccontextmanager
async def judge_session(config: JudgeConfig, *, on_gpu: bool) -> AsyncIterator[JudgeBackEnd | None]:
    """`open_judge` for the length of a block."""
    judge = open_judge(config, on_gpu=on_gpu)
    try:
        yield judge
    finally:
        if judge is not None:
            await judge.close()


def judge_config(judge: str, *, model: str | None = None, on_gpu: bool = False) -> JudgeConfig:
    """The judge that a command line names: "none", the URL of an endpoint, or a model (folder or hub id) for vLLM.

    `model` names the model behind an endpoint. Without it the endpoint is asked: the only model it serves is taken,
    or the default judge's where it does not tell.

    Raises:
        UserError: nothing of that kind is there.
    """
    if model is not None and not is_url(judge):
        raise UserError(f"--judge-model {model}: only with --judge URL; --judge is {judge}")
    if judge == "none":
        return NoJudge()
    if is_url(judge):
        url = endpoint_root(judge)
        return checked(OpenAIJudge, base_url=url, model=model or _served_model(url))
    name = folder_or_hub_id(judge, key="--judge", others="none, a URL, ")
    positions = context_length(name, key="--judge") if Path(name).is_dir() else None
    engine = JudgeEngineConfig() if on_gpu else JudgeEngineConfig(dtype="fp32", enforce_eager=True)
    default = VllmJudge()
    max_model_len = min(default.max_model_len, positions or default.max_model_len)
    return checked(
        VllmJudge,
        model=name,
        engine=engine,
        max_model_len=max_model_len,
        max_tokens=min(default.max_tokens, max_model_len // 4),
        timeout_s=OWN_ENGINE_TIMEOUT_S,
    )


def _served_model(url: str) -> str:
    """The only model that an endpoint serves, or the default judge where it does not tell or has it.

    Raises:
        UserError: it serves several others.
    """
    try:
        names = served_models(url)
    except NoReplyError:
        return DEFAULT_MODEL
    if not names or DEFAULT_MODEL in names:
        return DEFAULT_MODEL
    if len(names) > 1:
        raise UserError(f"--judge {url}: it serves {', '.join(names)}; choose one with --judge-model")
    return names[0]


def gpu_is_there() -> bool:
    """Whether this machine has an NVIDIA device, without asking CUDA."""
    return Path("/dev/nvidiactl").exists()
