import json
import subprocess
import sys

HEAVY = ("ray", "torch", "vllm", "transformers", "deepspeed", "numpy", "openai", "datasets")


def test_scoring_loads_no_heavy_library_and_starts_quickly():
    script = (
        "import json, sys, time, pydantic\n"
        "start = time.process_time()\n"
        "import reward.hybrid, reward.junk_check\n"
        "seconds = time.process_time() - start\n"
        f"print(json.dumps([seconds, [name for name in {HEAVY} if name in sys.modules]]))\n"
    )
    best_s = float("inf")
    for _ in range(3):  # the least busy of three
        output = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
        seconds, loaded = json.loads(output.stdout)
        assert loaded == []
        best_s = min(best_s, seconds)
    assert best_s < 0.3
