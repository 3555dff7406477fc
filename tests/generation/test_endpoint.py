"""Asking a language model over HTTP, against a server of this process."""

import pytest
from language_server import Server, bad, good

from segjax.errors import ConfigError, SegjaxError
from segjax.generation.endpoint import Endpoint


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server()
    yield server
    server.close()


@pytest.fixture
def waits():
    return []


@pytest.fixture
def endpoint(server, waits):
    return Endpoint(server.url + "/", "llama", key="secret", timeout=20, attempts=3, wait=waits.append)


def test_a_question_and_its_answer(endpoint, server):
    assert endpoint.ask("a caption?", "Be brief.", temperature=0.5, seed=3, top_p=None) == ("A car", False)
    path, headers, body = server.seen[0]
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer secret"
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a caption?"}]
    assert body == {"model": "llama", "messages": messages, "temperature": 0.5, "seed": 3}
    server.replies = [good("A car", "length")]
    assert endpoint.ask("a caption?") == ("A car", True)


def test_fields_and_no_key(server):
    fields = {"max_tokens": None, "max_completion_tokens": 9}
    Endpoint(server.url + "/chat/completions", "o", fields=fields).ask("?", max_tokens=9)
    path, headers, body = server.seen[0]
    assert path == "/v1/chat/completions" and "Authorization" not in headers
    assert body["max_completion_tokens"] == 9 and "max_tokens" not in body


def test_busy_servers_are_asked_again(endpoint, server, waits):
    server.replies = [bad(503), bad(429, "slow down", **{"Retry-After": "7"}), good("A bus")]
    assert endpoint.ask("?").text == "A bus"
    assert waits == [1.0, 7.0] and len(server.seen) == 3


def test_a_server_that_stays_busy(endpoint, server, waits):
    server.replies = [bad(429, "slow\n down", **{"Retry-After": "9999"})]
    with pytest.raises(SegjaxError, match=r"/v1/chat/completions: HTTP 429 \(slow down\) \(3 attempts\)") as caught:
        endpoint.ask("?")
    assert caught.value.code == 1 and waits == [60.0, 60.0] and "secret" not in str(caught.value)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"choices": []}', b'{"choices": [{"message": {"content": null}}]}'])
def test_answers_that_are_none(endpoint, server, waits, body):
    server.replies = [(200, body, {}), good("A tram")]
    assert endpoint.ask("?").text == "A tram" and waits == [1.0]
    server.replies = [(200, body, {})]
    with pytest.raises(SegjaxError, match="no answer as OpenAI's API gives it"):
        endpoint.ask("?")


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (bad(401, "bad key"), r"HTTP 401 \(bad key\): it wants another key"),
        (bad(404), "HTTP 404: check the URL, and whether it has a model 'llama'"),
        (bad(400, "no such field: seed"), r"HTTP 400 \(no such field: seed\): check the model and the fields"),
        (bad(302, Location="http://elsewhere/"), r"HTTP 302: has moved, give its new URL \(http://elsewhere/\)"),
    ],
)
def test_refusals_are_not_repeated(endpoint, server, waits, reply, message):
    server.replies = [reply]
    with pytest.raises(ConfigError, match=message):
        endpoint.ask("?")
    assert len(server.seen) == 1 and not waits


def test_nobody_there(server, waits):
    server.close()
    with pytest.raises(SegjaxError, match=r"cannot be reached \(.*refused.*\) \(2 attempts\)"):
        Endpoint(server.url, "llama", attempts=2, wait=waits.append).ask("?")
    with pytest.raises(ConfigError, match="it wants a key, and the environment variable for it is empty"):
        again = Server()
        again.replies = [bad(403)]
        try:
            Endpoint(again.url, "llama").ask("?")
        finally:
            again.close()


@pytest.mark.parametrize("url", ["localhost:8000/v1", "ftp://host/v1", "http:///v1", "http://me:secret@host/v1"])
def test_urls_that_are_none(url):
    with pytest.raises(ConfigError) as caught:
        Endpoint(url, "llama")
    assert "endpoint" in str(caught.value) and "secret" not in str(caught.value)
