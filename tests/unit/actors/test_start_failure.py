import os
import subprocess
import sys

import pytest
from pydantic import BaseModel, ValidationError, model_validator

from actors.config import EngineConfig
from actors.output_tail import OutputTail
from actors.start_failure import reason_of_failed_start

HIDDEN = RuntimeError(
    "Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore_DP0': 1}"
)
LOG = "(EngineCore pid=12) ERROR 11-30 19:01:02 [core.py:1510] "


def logged(*lines):
    return "".join(f"{LOG}{line}\n" for line in lines)


def test_the_first_error_that_the_engine_process_logs_is_the_cause():
    output = "a warning\n" + logged(
        "EngineCore failed to start.",
        "Traceback (most recent call last):",
        '  File "x.py", line 3, in load',
        "KeyError: 'model.layers.0.weight'",
        "The above exception was the direct cause of the following exception:",
        "RuntimeError: Worker failed to load",
    )
    reason = reason_of_failed_start(HIDDEN, output, EngineConfig())
    assert reason == "KeyError: 'model.layers.0.weight'; its whole output is in the log of the actor, or above"


def test_a_traceback_that_is_printed_instead_of_logged_is_read_as_well():
    output = "(EngineCore pid=12) Traceback (most recent call last):\n(EngineCore pid=12) OSError: no such library\n"
    assert reason_of_failed_start(HIDDEN, output, EngineConfig()).startswith("OSError: no such library; ")


def test_a_refusal_of_the_configuration_is_its_message_alone():
    class ModelConfig(BaseModel):
        @model_validator(mode="after")
        def refuse(self):
            raise ValueError("Total number of attention heads (3) must be divisible by tensor parallel size (2).")

    with pytest.raises(ValidationError) as refused:
        ModelConfig()
    reason = reason_of_failed_start(refused.value, "", EngineConfig())
    assert reason.startswith("Total number of attention heads (3) must be divisible by tensor parallel size (2); ")


@pytest.mark.parametrize(
    ("line", "way_out"),
    [
        (
            "ValueError: To serve at least one request with the model's max seq len (70000), (9.5 GiB KV cache is "
            "needed, which is larger than the available KV cache memory (4.2 GiB). Based on the available memory, the "
            "estimated maximum model length is 31000. Try increasing",
            "the KV cache must hold 70000 tokens, 9.5 GiB: raise gpu_memory_utilization=0.85 (on a CPU "
            "cpu_kv_cache_bytes=268435456), or lower the length limits; 31000 tokens would fit",
        ),
        ("ValueError: No available memory for the cache blocks. Try", "raise gpu_memory_utilization=0.85"),
        (
            "ValueError: Free memory on device cuda:0 (30.5/79.1 GiB) on startup is less than desired GPU memory",
            "lower gpu_memory_utilization=0.85 to 0.35, or end what holds the rest",
        ),
        (
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB",
            "lower max_num_seqs=256 to 128, then gpu_memory_utilization=0.85 to 0.75",
        ),
    ],
    ids=["long", "no cache", "not free", "out of memory"],
)
def test_where_memory_runs_out_the_next_smaller_setting_is_named(line, way_out):
    reason = reason_of_failed_start(HIDDEN, logged("EngineCore failed to start.", line), EngineConfig())
    assert way_out in reason


@pytest.mark.parametrize(("cores", "how"), [("{'E': -9}", "(signal 9)"), ("{}", "without a word")])
def test_an_engine_that_was_killed_in_silence_is_told_so(cores, how):
    killed = RuntimeError(f"Engine core initialization failed. See root cause above. Failed core proc(s): {cores}")
    reason = reason_of_failed_start(killed, "", EngineConfig(cpu_kv_cache_bytes=4096))
    assert reason.startswith(f"the engine process was killed {how}, as the kernel does where the memory of the host")
    assert "lower cpu_kv_cache_bytes=4096 to 2048" in reason


def test_what_a_child_says_is_kept_and_goes_on_to_standard_error(capfd):
    tail = OutputTail()
    with pytest.raises(subprocess.CalledProcessError), tail:
        subprocess.run([sys.executable, "-c", "import os; os.write(2, b'last words'); os._exit(3)"], check=True)
    os.write(2, b" after")
    assert tail.text == "last words"
    assert capfd.readouterr().err == "last words after"
