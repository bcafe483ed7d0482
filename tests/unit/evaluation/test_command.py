import subprocess
import sys

import pytest

from actors.config import YarnConfig
from curriculum.errors import UserError
from evaluation.command import Options, generator_config
from evaluation.config import EndpointGenerator, RayGenerator, VllmGenerator
from reward.config import RewardConfig

DEFAULTS = {
    "model": "owner/model",
    "model_name": None,
    "tokenizer": None,
    "replicas": 0,
    "tensor_parallel": 1,
    "device": "auto",
    "num_samples": 1,
    "max_input": 100,
    "max_output": 10,
    "temperature": 0.7,
    "top_p": 0.95,
    "seed": 0,
    "max_items": None,
    "concurrency": 4,
    "reward": RewardConfig(),
    "template": None,
    "request": None,
    "trust_remote_code": False,
    "yarn": None,
}


def generator(**values):
    return generator_config(Options(**{**DEFAULTS, **values}), on_gpu=False)


def test_a_model_runs_in_this_process_and_replicas_in_ray():
    assert isinstance(generator(), VllmGenerator)
    ray = generator(replicas=2)
    assert isinstance(ray, RayGenerator)
    assert ray.num_replicas == 2


def test_yarn_is_a_factor_and_the_original_length_or_that_of_a_recipe():
    yarn = YarnConfig(factor=4, original_max_tokens=32768)
    assert generator(yarn="4:32768").yarn == generator(yarn=yarn).yarn == yarn
    assert generator().yarn is None


def test_a_folder_becomes_absolute(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    assert generator(model="model").model == str(tmp_path / "model")


def test_a_url_is_an_endpoint_with_the_root_of_its_api():
    found = generator(model="http://127.0.0.1:9", model_name="owner/model")
    assert isinstance(found, EndpointGenerator)
    assert (found.base_url, found.model, found.tokenizer) == ("http://127.0.0.1:9/v1", "owner/model", "owner/model")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": "./nothing"}, "no such folder"),
        ({"model": "nothing"}, "no such folder"),
        ({"model_name": "x"}, "only where MODEL is a URL"),
        ({"tokenizer": "x"}, "only where MODEL is a URL"),
        ({"model": "http://127.0.0.1:9", "model_name": "m", "replicas": 2}, "not with a URL"),
        ({"model": "http://127.0.0.1:9", "model_name": "m"}, "--tokenizer='m'"),
        ({"model": "http://127.0.0.1:9"}, "--model-name"),
        ({"model": "http://127.0.0.1:9", "model_name": "m", "yarn": "4:32768"}, "--yarn: not with a URL"),
        ({"yarn": "4"}, r"--yarn '4': expected FACTOR:TOKENS, for example 4:32768"),
        ({"yarn": "x:32768"}, "--yarn FACTOR"),
        ({"yarn": "4:many"}, "--yarn TOKENS"),
    ],
)
def test_options_that_cannot_be_used_are_told(values, message):
    with pytest.raises(UserError, match=message):
        generator(**values)


@pytest.mark.parametrize("name", ["eval", "distill"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["./nothing", "x.jsonl"], "no such folder"),
        (["owner/model", "x.jsonl"], "x.jsonl: no such file"),
        (["owner/model", "x.jsonl", "--top-p", "0"], "--top-p"),
        (["owner/model", "frames"], "frames=FILE"),
    ],
)
def test_the_command_fails_with_one_line_and_status_2(name, arguments, message, tmp_path):
    script = "import sys; from cluster.cli import main; sys.argv[0] = 'qwenlong'; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, name, *arguments, "--out", str(tmp_path / "out")], capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
