"""Why an engine of vLLM did not start, out of what it raised and wrote, and the setting to change."""

from __future__ import annotations

import re

from pydantic import ValidationError

from actors.config import EngineConfig
from curriculum.errors import first_line, shortened

_ITS_OUTPUT = "its whole output is in the log of the actor, or above"
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_LOG_PREFIX = re.compile(r"^(?:\([^)]*\) )?(?:ERROR|CRITICAL) \d\d-\d\d [\d:.]+ \[[^\]]*\] ?")
_RAISED = re.compile(r"(?:\w+\.)*\w*(?:Error|Exception|Exit|Interrupt): .+")
_HIDES_THE_CAUSE = re.compile(
    r"See root cause|engine core initialization failed|worker.*(?:failed|died)", re.IGNORECASE
)
_CORES = re.compile(r"Failed core proc\(s\): \{[^}]*?: (-?\d+)")
_GIB = r"(\d+(?:\.\d+)?)"
_CACHE_TOO_SMALL = re.compile(rf"max seq len \((\d+)\), \({_GIB} GiB KV cache is needed, .*?\({_GIB} GiB\)")
_LONGEST = re.compile(r"estimated maximum model length is (\d+)")
_NOT_FREE = re.compile(rf"Free memory on device.*?\({_GIB}/{_GIB} GiB\) on startup")
_OUT_OF_MEMORY = re.compile(r"out of memory|OutOfMemoryError|Cannot allocate memory|not enough memory", re.IGNORECASE)


def reason_of_failed_start(error: BaseException, output: str, config: EngineConfig) -> str:
    """Return the root cause in one line, with the next smaller setting where memory ran out.

    Args:
        error: what vLLM raised in this process.
        output: what it and its engine process wrote meanwhile.
        config: the settings of the engine.
    """
    cause = _cause(error, output)
    way_out = _way_out(f"{cause}\n{error}", config)
    return (
        f"{shortened(cause.partition('. ')[0], 250)}; {way_out}"
        if way_out
        else f"{shortened(cause, 400)}; {_ITS_OUTPUT}"
    )


def _cause(error: BaseException, output: str) -> str:
    if isinstance(error, ValidationError):
        return "; ".join(fault["msg"].removeprefix("Value error, ").rstrip(".") for fault in error.errors())
    if not _HIDES_THE_CAUSE.search(str(error)):
        return first_line(error)
    lines = _COLOUR.sub("", output).splitlines()
    logged = [_LOG_PREFIX.sub("", line).strip() for line in lines if _LOG_PREFIX.match(line)]
    printed = [re.sub(r"^\([^)]*\) ", "", line).strip() for line in lines]
    for candidates in (logged, printed):
        for line in candidates:
            if _RAISED.fullmatch(line) and not _HIDES_THE_CAUSE.search(line):
                return line
    return _death(str(error)) or first_line(error)


def _death(text: str) -> str | None:
    """Return how an engine process that said nothing ended."""
    if "Failed core proc(s): {}" in text:
        return "the engine process was killed without a word, as the kernel does where the memory of the host runs out"
    if (found := _CORES.search(text)) is None:
        return None
    status = int(found[1])
    if status == -9:
        return "the engine process was killed (signal 9), as the kernel does where the memory of the host runs out"
    return f"the engine process ended {f'by signal {-status}' if status < 0 else f'with status {status}'}"


def _way_out(text: str, config: EngineConfig) -> str | None:
    share = f"gpu_memory_utilization={config.gpu_memory_utilization:g}"
    cache = f"cpu_kv_cache_bytes={config.cpu_kv_cache_bytes}"
    if found := _CACHE_TOO_SMALL.search(text):
        longest = _LONGEST.search(text)
        fits = f"; {longest[1]} tokens would fit" if longest else ""
        needed = f"the KV cache must hold {found[1]} tokens, {found[2]} GiB"
        return f"{needed}: raise {share} (on a CPU {cache}), or lower the length limits{fits}"
    if "No available memory for the cache blocks" in text:
        return f"the weights leave no room for the KV cache: raise {share}, or tensor_parallel_size"
    if found := _NOT_FREE.search(text):
        free = int(20 * float(found[1]) / float(found[2])) / 20
        return f"lower {share} to {free:g}, or end what holds the rest"
    if _OUT_OF_MEMORY.search(text):
        fewer, less = max(1, config.max_num_seqs // 2), max(0.1, config.gpu_memory_utilization - 0.1)
        smaller = f"lower max_num_seqs={config.max_num_seqs} to {fewer}, then {share} to {less:g}"
        return f"memory ran out: {smaller}, or raise tensor_parallel_size={config.tensor_parallel_size}"
    if "memory of the host" in text:
        return f"lower {cache} to {config.cpu_kv_cache_bytes // 2}, or start fewer actors on the host"
    return None
