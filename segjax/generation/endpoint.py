"""A language model behind an OpenAI-compatible endpoint (OpenAI, vLLM, llama.cpp, Ollama, TGI, ...): one chat message, one answer.

Plain HTTP by the standard library. The key goes into the Authorization header and nowhere else; redirects are refused, for they would
carry it to another host.
"""

import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

from segjax.errors import ConfigError, SegjaxError
from segjax.generation.captions import Answer

PATH = "/chat/completions"
RETRIED = (408, 409, 425, 429, 500, 502, 503, 504, 529)
"""Status codes that may be others in a moment."""
LONGEST_WAIT = 60.0
"""Seconds between two attempts, whatever the server asks for."""


class Endpoint:
    """url: the API's base, e.g. http://localhost:8000/v1, or the whole .../chat/completions. model: its name there.

    key: sent as a bearer token; "" sends none. fields: further fields of a request; None takes a field out that would be sent.
    timeout: seconds an answer may take. attempts: of each request; waits double from one second, or last as long as the server says.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key: str = "",
        fields: Mapping[str, Any] | None = None,
        timeout: float = 120.0,
        attempts: int = 6,
        wait: Callable[[float], None] = time.sleep,
    ):
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"endpoint {url!r}: expected http(s)://HOST[:PORT]/v1")
        if parts.username or parts.password:
            raise ConfigError(f"endpoint at {parts.hostname}: has a name or password in its URL: give the key by an environment variable")
        self.url = url.rstrip("/") if url.rstrip("/").endswith(PATH) else url.rstrip("/") + PATH
        self.model, self.fields, self.timeout, self.attempts = model, dict(fields or {}), timeout, attempts
        self._key, self._wait = key, wait
        self._open = urllib.request.build_opener(_NoRedirects).open

    def ask(self, text: str, system: str = "", **fields: Any) -> Answer:
        """The answer to one message. fields: temperature, top_p, max_tokens, seed, ...; a None is not sent.

        ConfigError: the endpoint refuses the request (wrong key, model or field). SegjaxError: it stays unreachable, busy or wrong.
        """
        messages = [{"role": role, "content": content} for role, content in (("system", system), ("user", text)) if content]
        body = {"model": self.model, "messages": messages, **fields, **self.fields}
        data = json.dumps({name: value for name, value in body.items() if value is not None}).encode()
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "segjax"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        for attempt in range(1, self.attempts + 1):
            answer, trouble, pause = self._try(urllib.request.Request(self.url, data, headers))
            if answer is not None:
                return answer
            if attempt < self.attempts:
                self._wait(min(LONGEST_WAIT, 2.0 ** (attempt - 1) if pause is None else pause))
        raise SegjaxError(f"{self.url}: {trouble} ({self.attempts} attempts): the same command goes on when it works again")

    def _try(self, request: urllib.request.Request) -> tuple[Answer | None, str, float | None]:
        """The answer, or None with what is wrong and the seconds that the server asks to wait (None where it does not)."""
        try:
            with self._open(request, timeout=self.timeout) as response:
                return _answer(response.read()), "", None
        except urllib.error.HTTPError as error:
            with error:
                trouble = f"HTTP {error.code}{_reason(error)}"
            if error.code in RETRIED:
                return None, trouble, _seconds(error.headers.get("Retry-After"))
            raise ConfigError(f"{self.url}: {trouble}: {self._advice(error)}") from None
        except (OSError, http.client.HTTPException) as error:  # refused, reset, timed out, unknown host, cut off
            reason = getattr(error, "reason", error)
            return None, f"cannot be reached ({reason or type(error).__name__})", None
        except ValueError as error:
            return None, f"no answer as OpenAI's API gives it ({error})", None

    def _advice(self, error: urllib.error.HTTPError) -> str:
        if 300 <= error.code < 400:
            return f"has moved, give its new URL ({error.headers.get('Location')})"
        if error.code in (401, 403):
            return "it wants another key" if self._key else "it wants a key, and the environment variable for it is empty"
        if error.code == 404:
            return f"check the URL, and whether it has a model {self.model!r}"
        return "check the model and the fields that are sent"


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_) -> None:
        return None


def _answer(content: bytes) -> Answer:
    """ValueError: no JSON, or without the text where it should be."""
    try:
        choice = json.loads(content)["choices"][0]
        text = choice["message"]["content"]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"no {error} in {content[:80]!r}") from None
    if not isinstance(text, str):
        raise ValueError(f"its text is {text!r}")
    return Answer(text, choice.get("finish_reason") == "length")


def _reason(error: urllib.error.HTTPError) -> str:
    """What the body of an error says, in one line."""
    try:
        content = error.read(4096).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        return ""
    try:
        told = json.loads(content)
        told = told.get("error", told.get("message", told)) if isinstance(told, dict) else told
        content = str(told.get("message", told) if isinstance(told, dict) else told)
    except ValueError:
        pass
    content = " ".join(content.split())[:200]
    return f" ({content})" if content else ""


def _seconds(text: str | None) -> float | None:
    """Retry-After in seconds; its other form, a date, counts as none."""
    try:
        return max(0.0, float(text)) if text else None
    except ValueError:
        return None
