"""OpenAI's own client against the endpoint: a true server behind it, true sockets on both sides."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")
uvicorn = pytest.importorskip("uvicorn")
openai = pytest.importorskip("openai")
httpx = pytest.importorskip("httpx")

from chat_model import CONTEXT, save_model  # noqa: E402
from serverlight.apps.answers import Answers  # noqa: E402
from serverlight.apps.openai_api import make_app  # noqa: E402
from serverlight.codec import CodecConfig  # noqa: E402
from serverlight.generation import DecoderLoopback, LoadedDecoder  # noqa: E402
from serverlight.plan import Plan  # noqa: E402
from serverlight.runtime.core import ServerConfig  # noqa: E402
from serverlight.runtime.decoder_client import DecoderClient  # noqa: E402
from serverlight.runtime.exits import Caps  # noqa: E402
from serverlight.runtime.server import Server  # noqa: E402
from serverlight.sampling import Sampling  # noqa: E402
from serverlight.text import Tokenizer  # noqa: E402

CUT = "layers.2"
WAIT_S = 60.0
KEY = "secret"
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Once upon a time?"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny Llama of random weights with a tokenizer and a chat template."""
    return save_model(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="module")
def head(folder: str) -> LoadedDecoder:
    return LoadedDecoder.head(folder, CUT, dtype=torch.float32)


@pytest.fixture(scope="module")
def tail(folder: str) -> LoadedDecoder:
    return LoadedDecoder.tail(folder, CUT, dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer(folder: str, head: LoadedDecoder) -> Tokenizer:
    return Tokenizer.load(folder, head.part.vocab_size)


@pytest.fixture(scope="module")
def plan(head: LoadedDecoder) -> Plan:
    return Plan(model=head.name, revision=head.revision, cut=CUT, codec=CodecConfig(profile="fp16"))


@pytest.fixture(scope="module")
def server(tail: LoadedDecoder) -> Iterator[Server]:
    with Server(tail, [CUT]) as server:
        yield server


@contextlib.contextmanager
def listening(app: Any) -> Iterator[str]:
    """Serves an app on a free port; yields its URL."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as sock:
        running = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [sock]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        finally:
            running.should_exit = True
            thread.join(WAIT_S)


Serve = Callable[..., str]


@pytest.fixture
def serve(head: LoadedDecoder, tokenizer: Tokenizer, plan: Plan) -> Iterator[Serve]:
    """Puts an endpoint before a server and returns its URL."""
    with contextlib.ExitStack() as stack:

        def serve(
            address: str,
            tokenizer: Tokenizer = tokenizer,
            wrap: Callable[[Any], Any] = lambda source: source,
            caps: Caps | None = None,
            **more: Any,
        ) -> str:
            client = DecoderClient([address], plan=plan, head=head, timeout_s=2.0, recovery_s=0.2, caps=caps)
            answers = Answers(wrap(client), tokenizer, head.part, max_tokens=40)
            return stack.enter_context(listening(make_app(answers, model="tiny", api_key=KEY, **more)))

        yield serve


def client_of(url: str, key: str = KEY) -> Any:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=WAIT_S)


@pytest.fixture
def url(serve: Serve, server: Server) -> str:
    return serve(server.address)


@pytest.fixture
def client(url: str) -> Iterator[Any]:
    with client_of(url) as client:
        yield client


def wait_until(condition: Callable[[], bool]) -> None:
    give_up_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < give_up_s, "waited in vain"
        time.sleep(0.005)


def expected(
    plan: Plan, head: LoadedDecoder, tail: LoadedDecoder, tokenizer: Tokenizer, ids: list[int], sampling: Sampling
) -> tuple[str, list[int]]:
    """What one process gives for 40 tokens."""
    made = DecoderLoopback(plan, head, tail).generate(
        ids, max_new_tokens=40, sampling=sampling, stop_ids=tokenizer.stop_ids
    )
    text = tokenizer.stream(ids)
    pieces = [text.push(i) for i in made if i not in tokenizer.stop_ids]
    return "".join([*pieces, text.finish()]), list(made)


@pytest.mark.parametrize("wish", [{"temperature": 0}, {"temperature": 0.8, "top_p": 0.9, "seed": 5}])
def test_chat_is_what_the_loopback_says(
    client: Any, plan: Plan, head: LoadedDecoder, tail: LoadedDecoder, tokenizer: Tokenizer, wish: dict[str, Any]
) -> None:
    """Streamed or not, a chat is the loopback's text, and its usage counts what crossed."""
    ids = tokenizer.encode_chat(CHAT)
    text, made = expected(plan, head, tail, tokenizer, ids, Sampling(**wish))
    whole = client.chat.completions.create(model="tiny", messages=CHAT, **wish)
    stream = client.chat.completions.create(
        model="tiny", messages=CHAT, stream=True, stream_options={"include_usage": True}, **wish
    )
    *chunks, last = list(stream)
    assert whole.choices[0].message.content == text
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    assert len(chunks) > 5
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (len(ids), len(made))
    assert last.usage.total_tokens == whole.usage.total_tokens == len(ids) + len(made)
    ours = whole.usage.serverlight
    assert 16 < ours["bits_per_element"] < 40
    assert ours["uplink_bytes"] > ours["downlink_bytes"] > 0
    assert (ours["num_recoveries"], ours["server_ms"] > 0) == (0, True)


def test_completion_with_logprobs(
    client: Any, plan: Plan, head: LoadedDecoder, tail: LoadedDecoder, tokenizer: Tokenizer
) -> None:
    """A completion's log-probabilities fit its text and the model, streamed or not; the greedy token is the likeliest."""
    ids = tokenizer.encode("once upon")
    text, _ = expected(plan, head, tail, tokenizer, ids, Sampling())
    wish = {"model": "tiny", "prompt": "once upon", "temperature": 0, "logprobs": 3}
    choice = client.completions.create(**wish).choices[0]
    reported = choice.logprobs
    assert choice.text == text
    assert reported.text_offset[0] == 0
    assert sorted(reported.text_offset) == reported.text_offset
    for token, offset in zip(reported.tokens, reported.text_offset, strict=True):
        assert (
            "\ufffd" in token or token in text[offset : offset + len(token) + 4]
        )  # after bytes that are no character yet
    for token, logprob, top in zip(reported.tokens, reported.token_logprobs, reported.top_logprobs, strict=True):
        assert logprob == max(top.values()) < 0
        assert "\ufffd" in token or top[token] == logprob
    chunks = [chunk.choices[0] for chunk in client.completions.create(**wish, stream=True)]
    streamed = [c.logprobs for c in chunks if c.logprobs]
    assert "".join(c.text for c in chunks) == text
    assert [t for part in streamed for t in part.tokens] == reported.tokens
    assert [t for part in streamed for t in part.text_offset] == reported.text_offset
    by_ids = client.completions.create(model="tiny", prompt=ids, temperature=0).choices[0]
    assert by_ids.text == text


def test_chat_with_logprobs(client: Any) -> None:
    """A chat has them in its own shape, with the bytes of each token."""
    wish = {"model": "tiny", "messages": CHAT, "temperature": 0, "logprobs": True, "top_logprobs": 2, "max_tokens": 8}
    choice = client.chat.completions.create(**wish).choices[0]
    content = choice.logprobs.content
    assert len(content) <= 8
    for noted in content:
        assert len(noted.top_logprobs) == 2
        assert noted.logprob == noted.top_logprobs[0].logprob
        assert noted.bytes is None or bytes(noted.bytes).decode() == noted.token
    chunks = list(client.chat.completions.create(**wish, stream=True))
    assert [n for c in chunks if c.choices[0].logprobs for n in c.choices[0].logprobs.content] == content


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings_cut_exactly(client: Any, stream: bool) -> None:
    """The text ends before the stop string, the tokens that are noted end with it, and the reason is `stop`."""
    wish = {"model": "tiny", "prompt": "once upon", "temperature": 0, "logprobs": 0}
    text = client.completions.create(**wish).choices[0].text
    stop = text[10:13]
    assert stop.strip()
    wish |= {"stop": [stop, "never said"], "stream": stream}
    made = client.completions.create(**wish)
    choices = [chunk.choices[0] for chunk in made] if stream else [made.choices[0]]
    cut = text[: text.index(stop)]
    assert "".join(choice.text for choice in choices) == cut
    assert choices[-1].finish_reason == "stop"
    assert all(offset < len(cut) for c in choices if c.logprobs for offset in c.logprobs.text_offset)


def test_length_is_kept(client: Any) -> None:
    """Both names of the limit hold, and the reason is `length`."""
    for limit in ({"max_tokens": 3}, {"max_completion_tokens": 3}):
        made = client.chat.completions.create(model="tiny", messages=CHAT, seed=1, **limit)
        assert (made.usage.completion_tokens, made.choices[0].finish_reason) == (3, "length")


def test_models_and_health(client: Any, url: str) -> None:
    """The model can be found, and health needs no key."""
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "serverlight"
    assert httpx.get(f"{url}/health").json() == {"status": "ok", "model": "tiny", "requests": 0}


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"n": 2}, "n", "invalid_value"),
    ({"tools": [{"type": "function"}]}, "tools", "invalid_value"),
    ({"response_format": {"type": "json_object"}}, "response_format", "invalid_value"),
    ({"logit_bias": {"5": 1}}, "logit_bias", "invalid_value"),
    ({"presence_penalty": 0.5}, "presence_penalty", "invalid_value"),
    ({"frequency_penalty": -1}, "frequency_penalty", "invalid_value"),
    ({"stop": list("abcde")}, "stop", "invalid_value"),
    ({"temperature": -1}, "temperature", "invalid_value"),
    ({"temperature": "hot"}, "temperature", "invalid_value"),
    ({"top_p": 2}, "top_p", "invalid_value"),
    ({"min_p": 10**400}, "min_p", "invalid_value"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"max_tokens": True}, "max_tokens", "invalid_value"),
    ({"top_logprobs": 3}, "top_logprobs", "invalid_value"),
    ({"surprise": 1}, "surprise", "invalid_value"),
    ({"messages": []}, "messages", "invalid_value"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content", "invalid_value"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]", "invalid_value"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages", "invalid_value"),
    ({"max_tokens": CONTEXT}, None, "context_length_exceeded"),
]


@pytest.fixture(scope="module")
def stable_url(head: LoadedDecoder, tokenizer: Tokenizer, plan: Plan, server: Server) -> Iterator[str]:
    """An endpoint for all the wrong requests."""
    answers = Answers(DecoderClient([server.address], plan=plan, head=head), tokenizer, head.part, max_tokens=4)
    with listening(make_app(answers, model="tiny")) as url:
        yield url


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("wrong", "param", "code"), WRONG)
def test_what_is_wrong_is_named(stable_url: str, wrong: dict[str, Any], param: str, code: str, stream: bool) -> None:
    """A wish that cannot be granted is a 400 in OpenAI's shape that names the field, streamed or not."""
    body = {"model": "tiny", "messages": CHAT, "stream": stream} | wrong
    answered = httpx.post(f"{stable_url}/v1/chat/completions", json=body)
    error = answered.json()["error"]
    assert (answered.status_code, error["param"], error["code"]) == (400, param, code)
    assert error["type"] == "invalid_request_error"
    assert set(error) == {"message", "type", "param", "code"}


def test_what_asks_for_nothing_is_let_in(stable_url: str) -> None:
    """Fields with values that change nothing are what many clients send."""
    nothing = {
        "n": 1, "tools": None, "response_format": {"type": "text"}, "logit_bias": {}, "presence_penalty": 0, "user": "me",
        "top_k": 5, "min_p": 0.05, "repetition_penalty": 1.2,
    }  # fmt: skip
    body = {"model": "tiny", "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}], **nothing}
    assert httpx.post(f"{stable_url}/v1/chat/completions", json=body).status_code == 200


@pytest.mark.parametrize(
    ("content", "kind"),
    [(b"{", "application/json"), (b"[1]", "application/json"), (b'{"model": "\\ud800"}', "application/json"),
     (b"[" * 100_000, "application/json"), (b"{}", "text/plain")],
)  # fmt: skip
def test_bodies_that_are_none(stable_url: str, content: bytes, kind: str) -> None:
    """What is no JSON object, or does not say that it is one, is a 400."""
    answered = httpx.post(f"{stable_url}/v1/completions", content=content, headers={"Content-Type": kind})
    assert (answered.status_code, answered.json()["error"]["code"]) == (400, "invalid_value")


def test_other_statuses(client: Any, url: str) -> None:
    """Unknown models, paths, methods, and wrong keys have the statuses that OpenAI's client knows."""
    with pytest.raises(openai.NotFoundError) as unknown:
        client.completions.create(model="huge", prompt="x")
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("huge")
    for key in ("wrong", KEY[:-1]):
        with pytest.raises(openai.AuthenticationError) as refused, client_of(url, key) as stranger:
            stranger.models.list()
        assert refused.value.code == "invalid_api_key"
    assert httpx.get(f"{url}/elsewhere").json()["error"]["code"] == "not_found"
    assert httpx.put(f"{url}/health").json()["error"]["code"] == "method_not_allowed"


def test_a_model_without_chat_template(serve: Serve, server: Server, tokenizer: Tokenizer) -> None:
    """A chat with a model that was not made for it is refused; a completion works."""
    raw = transformers.PreTrainedTokenizerFast.from_pretrained(tokenizer.name)
    raw.chat_template = None
    with client_of(serve(server.address, tokenizer=dataclasses.replace(tokenizer, raw=raw))) as client:
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model="tiny", messages=CHAT)
        assert refused.value.code == "no_chat_template"
        assert client.completions.create(model="tiny", prompt="once", max_tokens=2).usage.completion_tokens == 2


# -- busy servers, lost servers, clients that leave ---------------------------------------------------


def long_stream(client: Any) -> Any:
    """With this seed the first token is text that is sent at once, and not the first half of a character."""
    return client.completions.create(model="tiny", prompt="once", max_tokens=200, logprobs=0, stream=True, seed=3)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves(serve: Serve, tail: LoadedDecoder, stream: bool) -> None:
    """Its session ends at once, and the next request is answered."""
    with Server(tail, [CUT]) as server, client_of(serve(server.address)) as client:
        if stream:
            answer = long_stream(client)
            next(iter(answer))
            assert server.core.kv_bytes > 0
            answer.close()
        else:
            wish = {"model": "tiny", "prompt": "once", "max_tokens": 250, "seed": 1}
            with pytest.raises(openai.APITimeoutError):
                client.with_options(timeout=0.05).completions.create(**wish)
        wait_until(lambda: server.core.kv_bytes == 0)
        assert client.completions.create(model="tiny", prompt="once", max_tokens=2).usage.completion_tokens == 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_server_that_is_full(
    serve: Serve, head: LoadedDecoder, tail: LoadedDecoder, plan: Plan, stream: bool
) -> None:
    """A server without room for another session is a 429 that says when to come back."""
    with (
        Server(tail, [CUT], config=ServerConfig(max_sessions=1)) as server,
        contextlib.closing(DecoderClient([server.address], plan=plan, head=head).stream([5], max_new_tokens=9)) as held,
        client_of(serve(server.address)) as client,
    ):
        next(held)
        with pytest.raises(openai.RateLimitError) as refused:
            client.completions.create(model="tiny", prompt="once", stream=stream)
    assert int(refused.value.response.headers["Retry-After"]) >= 1
    assert refused.value.code == "rate_limit_exceeded"


@pytest.mark.parametrize("on_limit", ["shallower", "stop"])
def test_a_device_without_more_memory(serve: Serve, folder: str, client: Any, on_limit: Any) -> None:
    """The cut moves in mid-answer and the text goes on as it would have, or ends; the usage says which."""
    wish: dict[str, Any] = {"model": "tiny", "prompt": "once upon a time", "max_tokens": 40, "temperature": 0}
    uncapped = client.completions.create(**wish)
    room = 2 * 2 * 2 * 8 * 4 * (uncapped.usage.prompt_tokens + 10)  # two layers' keys and values, two heads of 8, fp32
    tail = LoadedDecoder.tail(folder, "layers.0", dtype=torch.float32)
    with Server(tail, ["layers.0", "layers.1", CUT]) as server:
        caps = Caps(device_memory_bytes=room, on_limit=on_limit)
        with client_of(serve(server.address, caps=caps)) as capped_client:
            capped = capped_client.completions.create(**wish)
    moved = capped.usage.serverlight["exits"]
    assert uncapped.usage.serverlight["exits"] == []
    assert moved[0]["reason"] == "memory"
    assert moved[0]["from_cut"] == CUT
    if on_limit == "stop":
        assert moved[0]["to_cut"] is None
        assert capped.choices[0].finish_reason == "length"
        assert 0 < capped.usage.completion_tokens < uncapped.usage.completion_tokens
        assert uncapped.choices[0].text.startswith(capped.choices[0].text)
    else:
        assert moved[0]["to_cut"] == "layers.1"
        assert capped.usage.completion_tokens == uncapped.usage.completion_tokens


class Gated:
    """Makes tokens only while the gate is open."""

    def __init__(self, source: DecoderClient, gate: threading.Event) -> None:
        self._source, self._gate = source, gate

    def stream(self, token_ids: list[int], **wish: Any) -> Iterator[Any]:
        for token in self._source.stream(token_ids, **wish):
            yield token
            assert self._gate.wait(WAIT_S)


def test_an_endpoint_that_is_full(serve: Serve, server: Server) -> None:
    """One answer runs, so many wait, and who comes then is told to come back; those that wait are answered in turn."""
    gate, made = threading.Event(), list[int]()
    url = serve(server.address, wrap=lambda source: Gated(source, gate), max_waiting=1)

    def ask() -> Any:
        return client.completions.create(model="tiny", prompt="once", max_tokens=2, seed=1).usage.completion_tokens

    def num_requests() -> int:
        return int(httpx.get(f"{url}/health").json()["requests"])

    with client_of(url) as client:
        running = long_stream(client)
        next(iter(running))
        waiting = threading.Thread(target=lambda: made.append(ask()))
        waiting.start()
        wait_until(lambda: num_requests() == 2)
        with pytest.raises(openai.RateLimitError) as refused:
            ask()
        assert refused.value.response.headers["Retry-After"] == "1"
        gate.set()
        running.close()
        waiting.join(WAIT_S)
        assert made == [2]
        wait_until(lambda: num_requests() == 0)


@pytest.mark.parametrize("stream", [False, True])
def test_no_server(serve: Serve, stream: bool) -> None:
    """Where no server is there, the answer is a 503."""
    with client_of(serve("127.0.0.1:1")) as client, pytest.raises(openai.InternalServerError) as lost:
        client.completions.create(model="tiny", prompt="once", stream=stream)
    assert (lost.value.status_code, lost.value.code) == (503, "server_unavailable")


def test_a_server_that_dies_in_mid_answer(serve: Serve, tail: LoadedDecoder) -> None:
    """In a stream that runs, an error is an event that OpenAI's client raises."""
    with Server(tail, [CUT]) as server, client_of(serve(server.address)) as client:
        pieces = iter(long_stream(client))
        next(pieces)
        server.drain(0.0)
        with pytest.raises(openai.APIError) as lost:
            list(pieces)
    assert lost.value.code == "server_unavailable"


# -- the command -------------------------------------------------------------------------------------


def test_command(folder: str, server: Server, start: Callable[..., subprocess.Popen[str]]) -> None:
    """`serverlight edge` says where it listens, answers, and stops on SIGTERM with exit code 0."""
    words = ("edge", folder, "--server", server.address, "--cut", CUT, "--port", "0", "--json", "-")
    with start(*words) as process:
        assert process.stdout
        assert process.stderr
        line = process.stdout.readline()
        assert line, process.stderr.read()
        facts = json.loads(line)
        with openai.OpenAI(base_url=facts["url"], api_key="none", max_retries=0, timeout=WAIT_S) as client:
            made = client.chat.completions.create(model=facts["model"], messages=CHAT, max_tokens=3)
        assert made.usage.completion_tokens <= 3
        os.kill(process.pid, signal.SIGTERM)
        _, err = process.communicate(timeout=WAIT_S)
        assert (process.returncode, err) == (0, "")
