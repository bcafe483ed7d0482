import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from evaluation.config import EndpointGenerator, SamplingConfig
from evaluation.endpoint import MAX_FAILURES_IN_A_ROW, OpenAIGenerator, completion_of
from evaluation.generator import GeneratorDown
from evaluation.prompts import Prompt
from reward.chat_endpoint import BadReplyError, NoReplyError, read_reply

PROMPT = Prompt(text="what?", token_ids=np.zeros(3, np.int32), document_cut=False)


def chat(content="the answer is 4", *, finish="stop", tokens=5, **message):
    message = {"role": "assistant", "content": content, **message}
    return json.dumps({
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {"completion_tokens": tokens},
    })  # fmt: skip


class Server:
    """Replies with the given (status, body) pairs, the last one for ever."""

    def __init__(self, replies):
        self.requests = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                outer.requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                status, body = replies[min(len(outer.requests), len(replies)) - 1]
                content = body.encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def serve():
    servers = []

    def start(*replies):
        servers.append(Server(replies))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def ask(url, *, prompts=1, **settings):
    """The completions or errors of some prompts, one after the other."""
    values = {"max_backoff_s": 0.01, "timeout_s": 5, "max_retries": 2, **settings}
    config = EndpointGenerator(base_url=url, model="m", tokenizer="m", **values)

    async def run():
        generator = OpenAIGenerator(config, SamplingConfig(max_response_tokens=77, temperature=0.5))
        found = []
        for seed in range(prompts):
            try:
                found.append(await generator.generate(PROMPT, seed=seed))
            except (NoReplyError, GeneratorDown) as error:
                found.append(error)
        await generator.close()
        return found

    return asyncio.run(run())


def test_the_request_carries_prompt_sampling_and_seed(serve):
    server = serve((200, chat()))
    (completion,) = ask(server.url)
    assert (completion.text, completion.num_tokens, completion.is_truncated) == ("the answer is 4", 5, False)
    (request,) = server.requests
    assert request["messages"] == [{"role": "user", "content": "what?"}]
    assert (request["temperature"], request["top_p"], request["max_tokens"], request["seed"]) == (0.5, 0.95, 77, 0)


def test_an_answer_at_the_limit_is_truncated(serve):
    assert ask(serve((200, chat(finish="length"))).url)[0].is_truncated


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_thinking_that_the_server_took_out_comes_back_in_its_tags(serve, field):
    assert ask(serve((200, chat(**{field: "hm"}))).url)[0].text == "<think>hm</think>the answer is 4"


@pytest.mark.parametrize("bad", [(500, "{}"), (429, "{}"), (200, "<html>busy</html>"), (200, "{"), (200, "{}")])
def test_a_failure_is_tried_again(serve, bad):
    server = serve(bad, (200, chat()))
    assert ask(server.url)[0].text == "the answer is 4"
    assert len(server.requests) == 2


def test_a_refusal_of_one_prompt_is_not_tried_again(serve):
    server = serve((400, "{}"))
    (error,) = ask(server.url)
    assert isinstance(error, NoReplyError)
    assert str(error) == "HTTP 400"
    assert len(server.requests) == 1


REFUSAL = '{"error": {"message": "max_tokens is too large:\\n 77 > 64", "type": "BadRequestError"}}'


def test_what_the_server_says_about_a_refusal_is_kept_on_one_line(serve):
    (error,) = ask(serve((400, REFUSAL)).url)
    assert str(error) == "HTTP 400: max_tokens is too large: 77 > 64"


@pytest.mark.parametrize("status", [400, 401, 404])
def test_a_refusal_that_all_requests_share_is_told_after_the_first_few(serve, status):
    server = serve((status, REFUSAL))
    found = ask(server.url, prompts=3)
    assert [type(error) for error in found] == [NoReplyError, NoReplyError, GeneratorDown]
    assert f"it refuses every request (HTTP {status}: max_tokens is too large: 77 > 64); change" in str(found[2])
    assert "again" not in str(found[2])


def test_refusals_in_different_words_concern_their_prompts_only(serve):
    server = serve(*[(400, json.dumps({"message": f"{i} tokens are too many"})) for i in range(9)], (200, chat()))
    found = ask(server.url, prompts=10)
    assert not any(isinstance(error, GeneratorDown) for error in found)


def test_further_fields_are_sent_with_every_request(serve):
    server = serve((200, chat()))
    ask(server.url, request_fields={"chat_template_kwargs": {"enable_thinking": False}})
    assert server.requests[0]["chat_template_kwargs"] == {"enable_thinking": False}


def test_retries_end(serve):
    server = serve((503, "{}"))
    assert isinstance(ask(server.url)[0], NoReplyError)
    assert len(server.requests) == 3


def test_an_endpoint_that_is_gone_is_given_up():
    found = ask("http://127.0.0.1:9/v1", prompts=MAX_FAILURES_IN_A_ROW, max_retries=0)
    assert all(isinstance(error, NoReplyError) for error in found[:-1])
    assert isinstance(found[-1], GeneratorDown)
    assert "run the same command again" in str(found[-1])


def test_one_answer_in_between_shows_that_the_endpoint_is_there(serve):
    failures = [(400, "{}")] * (MAX_FAILURES_IN_A_ROW - 1)
    server = serve((200, chat()), *failures, (200, chat()), *failures, (200, chat()))
    found = ask(server.url, prompts=2 * MAX_FAILURES_IN_A_ROW + 1)
    assert not any(isinstance(error, GeneratorDown) for error in found)


@pytest.mark.parametrize(
    "body",
    [
        "",
        "<html>",
        "[]",
        '{"choices": []}',
        '{"choices": [{"message": {"content": 7}}]}',
        '{"choices": ["x"]}',
        '{"choices": [{"message": {"content": "x"}}], "usage": "many"}',
        "[" * 100_000,
    ],
)
def test_a_body_that_is_no_completion_is_told(body):
    with pytest.raises(BadReplyError, match="no chat completion"):
        read_reply(body, completion_of)


def test_a_completion_without_text_or_usage_is_an_empty_answer():
    completion = read_reply('{"choices": [{"message": {"content": null}}]}', completion_of)
    assert (completion.text, completion.num_tokens) == ("", 0)
