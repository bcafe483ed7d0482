"""How the engine of vLLM is started, and what is said if it does not start or is gone."""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

from actors.config import EngineConfig
from actors.output_tail import OutputTail
from actors.start_failure import reason_of_failed_start
from actors.vllm_arguments import engine_config
from curriculum.errors import RunFailed, UserError


def start_engine(arguments: dict[str, Any], config: EngineConfig, *, is_compared: bool, stat_logger: Any) -> Any:
    """Return a `vllm.v1.engine.async_llm.AsyncLLM` that can sample; block until then.

    Args:
        arguments: those of `engine_arguments`.
        config: resources of the engine, for the way out.
        is_compared: whether its log-probabilities are compared with the learner's.
        stat_logger: factory of what hears vLLM's statistics.

    Raises:
        UserError: `is_compared`, and a feature is on whose log-probabilities are not those of the model.
        RunFailed: vLLM cannot serve the model on this machine.
    """
    from vllm.v1.engine.async_llm import AsyncLLM

    output = OutputTail()
    try:
        with output:
            vllm_config = engine_config(arguments, is_compared=is_compared)
            return AsyncLLM.from_vllm_config(vllm_config, stat_loggers=[stat_logger], disable_log_stats=True)
    except UserError:
        raise
    except Exception as error:  # vLLM and the code of a model raise anything
        reason = reason_of_failed_start(error, output.text, config)
        raise RunFailed(f"model {arguments['model']!r}: vLLM cannot serve it here: {reason}") from error


def end_process(reason: str = "the process of the vLLM engine died; read the output of vLLM above") -> NoReturn:
    """End this process at once with an error status, so that Ray restarts the actor; after status 0 it would not."""
    sys.stderr.write(f"error: {reason}; this process ends\n")
    sys.stderr.flush()
    os._exit(1)
