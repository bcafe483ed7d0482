"""Counts the prompt tokens that an engine really computes, from vLLM's own statistics of every step."""

from __future__ import annotations

from typing import Any


class PrefillCounter:
    """What was computed since the start; tokens found in the prefix cache are not counted."""

    def __init__(self) -> None:
        self.num_computed_tokens = 0

    def stat_logger(self) -> type:
        """The class whose only object hears of every step of the engine.

        vLLM adds its Prometheus logger, which costs time in every step, unless a logger of that kind is given.
        """
        from vllm.v1.metrics.loggers import PrometheusStatLogger

        counter = self

        class StepListener(PrometheusStatLogger):
            def __init__(self, *arguments: Any, **more: Any) -> None:
                """Registers no metric."""

            def record(self, scheduler_stats: Any, iteration_stats: Any, *others: Any, **more: Any) -> None:
                if iteration_stats is not None:
                    counter.num_computed_tokens += iteration_stats.prompt_token_stats.computed

            def log_engine_initialized(self) -> None:
                """Nothing to say."""

            def record_sleep_state(self, *arguments: Any, **more: Any) -> None:
                """Likewise."""

        return StepListener
