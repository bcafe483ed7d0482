import asyncio
from pathlib import Path

import pytest

from curriculum.errors import UserError
from reward.config import NoJudge, OpenAIJudge, VllmJudge
from reward.judge_back_end import DEFAULT_MODEL, endpoint_root, judge_config, judge_session
from reward.judge_endpoint import OpenAIJudgeClient

MODEL = Path(__file__).parents[3] / "recipes" / "assets" / "local_judge"


def test_none_is_no_judge_and_opens_nothing():
    assert judge_config("none") == NoJudge()

    async def session():
        async with judge_session(NoJudge(), on_gpu=False) as judge:
            return judge

    assert asyncio.run(session()) is None


def test_a_url_is_an_endpoint_and_its_only_model_is_found_out(endpoint):
    judge = judge_config(endpoint.url)
    assert isinstance(judge, OpenAIJudge)
    assert (judge.base_url, judge.model) == (endpoint.url, "the-judge")


def test_a_named_model_is_not_looked_up(dead_url):
    judge = judge_config(dead_url, model="another")
    assert isinstance(judge, OpenAIJudge)
    assert judge.model == "another"


def test_an_endpoint_that_does_not_tell_gets_the_default_model(dead_url, endpoint):
    assert judge_config(dead_url).model == DEFAULT_MODEL
    endpoint.models = ["x", DEFAULT_MODEL]
    assert judge_config(endpoint.url).model == DEFAULT_MODEL


def test_several_models_need_a_choice(endpoint):
    endpoint.models = ["x", "y"]
    with pytest.raises(UserError, match="x, y; choose one with --judge-model"):
        judge_config(endpoint.url)


@pytest.mark.parametrize(
    ("url", "root"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000/v1"),
        ("https://host/v1/chat/completions", "https://host/v1"),
        ("https://host/judge/api", "https://host/judge/api"),
    ],
)
def test_the_root_of_an_endpoint(url, root):
    assert endpoint_root(url) == root


@pytest.mark.parametrize("url", ["http://", "https:///v1"])
def test_a_url_without_a_host_is_refused(url):
    with pytest.raises(UserError, match="names no host; give http://HOST:PORT"):
        judge_config(url)


def test_a_folder_or_a_hub_id_is_a_model_for_vllm():
    folder = judge_config(str(MODEL))
    assert isinstance(folder, VllmJudge)
    assert (folder.model, folder.max_model_len) == (str(MODEL), 2048)
    hub = judge_config("Qwen/Qwen2.5-1.5B-Instruct")
    assert isinstance(hub, VllmJudge)
    assert hub.model == "Qwen/Qwen2.5-1.5B-Instruct"


@pytest.mark.parametrize("judge", ["", "./missing", "~/missing", "/missing/model", "gpt-4", "a/b/c", "ftp://host/v1"])
def test_anything_else_is_refused_with_a_way_out(judge):
    with pytest.raises(UserError, match="give none, a URL, a Hugging Face folder or a hub id"):
        judge_config(judge)


def test_a_model_name_belongs_to_an_endpoint(tmp_path):
    with pytest.raises(UserError, match="only with --judge URL"):
        judge_config(str(tmp_path), model="x")


def test_a_session_closes_its_client(endpoint):
    async def session():
        async with judge_session(judge_config(endpoint.url), on_gpu=False) as judge:
            assert isinstance(judge, OpenAIJudgeClient)
        return judge._endpoint._client.is_closed()

    assert asyncio.run(session())
