"""The back end of a judge, from its configuration or the command line: the one place that knows every kind."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from actors.config import YarnConfig
from actors.model_folder import context_length, folder_or_hub_id
from curriculum.config import checked
from curriculum.errors import UserError, in_line
from reward.chat_endpoint import NoReplyError, endpoint_root, is_url, served_models
from reward.config import JudgeConfig, NoJudge, OpenAIJudge, VllmJudge

if TYPE_CHECKING:
    from reward.judge_endpoint import OpenAIJudgeClient
    from reward.judge_engine import VllmJudgeEngine

    JudgeBackEnd = OpenAIJudgeClient | VllmJudgeEngine

DEFAULT_MODEL = VllmJudge().model
OWN_ENGINE_TIMEOUT_S = 3600.0
"""Longest wait of a command for an engine of its own, which serves nothing else."""


def open_judge(config: JudgeConfig, *, on_gpu: bool, yarn: YarnConfig | None = None) -> JudgeBackEnd | None:
    """Open the back end of a judge; return None where there is no judge. The caller closes it.

    A vLLM engine must be opened inside the event loop that uses it; `yarn` is put on the rope of its model.
    """
    if isinstance(config, NoJudge):
        return None
    if isinstance(config, OpenAIJudge):
        from reward.judge_endpoint import OpenAIJudgeClient

        return OpenAIJudgeClient(config)
    from reward.judge_engine import VllmJudgeEngine

    return VllmJudgeEngine(config, on_gpu=on_gpu, yarn=yarn)


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
        UserError: there is no such judge.
    """
    if model is not None and not is_url(judge):
        raise UserError(f"--judge-model {in_line(model)}: only with --judge URL; --judge is {judge!r:.80}")
    if judge == "none":
        return NoJudge()
    if is_url(judge):
        url = endpoint_root(judge)
        return checked(OpenAIJudge, base_url=url, model=model or _served_model(url))
    name = folder_or_hub_id(judge, key="--judge", others="none, a URL, ")
    positions = context_length(name, key="--judge") if Path(name).is_dir() else None
    default = VllmJudge()
    max_model_len = min(default.max_model_len, positions or default.max_model_len)
    return checked(
        VllmJudge,
        model=name,
        max_model_len=max_model_len,
        max_tokens=min(default.max_tokens, max_model_len // 4),
        timeout_s=OWN_ENGINE_TIMEOUT_S,
    )


def _served_model(url: str) -> str:
    """Return the only model that an endpoint serves, or the default judge where it serves that or does not answer.

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
    """Return whether this machine has an NVIDIA device, without loading CUDA."""
    return Path("/dev/nvidiactl").exists()
