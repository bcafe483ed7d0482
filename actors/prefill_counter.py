"""Counter of the prompt tokens that an engine computes, from vLLM's own statistics of every step."""

from __future__ import annotations

from typing import Any


class PrefillCounter:
    """Count of computed prompt tokens since the start; tokens found in the prefix cache are not counted."""

    def __init__(self) -> None:
        self.num_computed_tokens = 0

    def stat_logger(self) -> type:
        """Return a class for vLLM, which makes one object of it and reports every engine step to it.

        It is a Prometheus logger, because vLLM adds its own, which costs time in every step, unless it is given one.
        """
        from vllm.v1.metrics.loggers import PrometheusStatLogger

        counter = self

        class StepListener(PrometheusStatLogger):
            def __init__(self, *arguments: Any, **more: Any) -> None:
                """Register no metric."""

            def record(self, scheduler_stats: Any, iteration_stats: Any, *others: Any, **more: Any) -> None:
                """Count the prompt tokens of an engine step."""
                if iteration_stats is not None:
                    counter.num_computed_tokens += iteration_stats.prompt_token_stats.computed

            def log_engine_initialized(self) -> None:
                """Log nothing."""

            def record_sleep_state(self, *arguments: Any, **more: Any) -> None:
                """Record nothing."""

        return StepListener
