"""An OpenAI-compatible chat endpoint, asked with a time limit and further attempts.

Nothing is raised for what a server does: an answer that does not come, or has another shape, is a fault in words. A
redirect is not followed, since it would carry the key to another host. After `GIVE_UP` requests in a row without an
answer the endpoint is not asked any more.
"""

from __future__ import annotations

import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from http.client import HTTPException
from threading import Lock
from typing import Any
from urllib.parse import urlsplit

from demeanor.errors import InputError, one_line
from demeanor.faults import fault

GIVE_UP = 6
GIVEN_UP = f"is not asked any more, after {GIVE_UP} requests in a row without an answer"
_MAX_BYTES = 1_000_000  # of an answer
_BETWEEN_S = 0.5  # before the first further attempt; doubled for each one after it
_MOST_BETWEEN_S = 30.0  # however long a server asks to wait
_RETRIED = (408, 409, 425, 429, 500, 502, 503, 504)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would turn the question into a GET, and carry the key to another host."""

    def redirect_request(self, *arguments: object) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


def check_endpoint(address: str | None, key_env: str | None) -> None:
    """What both keys of a contract must be; raises the fault of a key."""
    parts = urlsplit(address or "")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise fault(f"{address} is no address such as http://localhost:8000/v1", "endpoint")
    if key_env is not None and not re.fullmatch(r"[A-Za-z_]\w*", key_env):
        raise fault("is the name of an environment variable, never the key itself", "key_env")


def check_key(key_env: str | None) -> None:
    """Raises:
    InputError: the environment variable that should hold the key is not set."""
    if key_env is not None and not os.environ.get(key_env):
        raise InputError(f"the environment variable {key_env} is not set", remedy="it holds the key")


class Endpoint:
    """Usable by several threads.

    Args:
        address: up to /v1.
        key_env: name of the environment variable that holds the key.
        timeout_s: for one attempt.
        retries: further attempts.
    """

    def __init__(self, address: str, *, key_env: str | None, timeout_s: float, retries: int) -> None:
        self.url = address.rstrip("/") + "/chat/completions"
        self.key_env, self.timeout_s, self.retries = key_env, timeout_s, retries
        self._lock = Lock()
        self._failed_in_a_row = 0

    def ask(self, body: Mapping[str, object], read: Callable[[Any], Any]) -> tuple[Any, str]:
        """(what `read` finds in the answer, "") or (None, what went wrong).

        Args:
            read: takes the answer's JSON; raises ValueError, LookupError or TypeError when it has another shape.
        """
        if self._failed_in_a_row >= GIVE_UP:
            return None, GIVEN_UP
        wrong = ""
        for attempt in range(self.retries + 1):
            try:
                found = read(self._post(body))
            except urllib.error.HTTPError as error:
                wrong = f"answered {error.code} {one_line(error.reason, 60)}"
                if error.code not in _RETRIED:
                    break
                wait_s = _asked_to_wait(error.headers.get("Retry-After"))
            except (OSError, HTTPException, ValueError, LookupError, TypeError, RecursionError) as error:
                reason = getattr(error, "reason", None) or error
                wrong, wait_s = f"gave no answer: {one_line(reason, 100) or type(error).__name__}", 0.0
            else:
                self._failed_in_a_row = 0
                return found, ""
            if attempt < self.retries:
                time.sleep(max(_BETWEEN_S * 2**attempt, wait_s))
        with self._lock:
            self._failed_in_a_row += 1
        return None, wrong

    def _post(self, body: Mapping[str, object]) -> Any:
        """The answer's JSON. Raises whatever goes wrong with the connection."""
        headers = {"Content-Type": "application/json"}
        if self.key_env is not None:
            headers["Authorization"] = f"Bearer {os.environ[self.key_env]}"
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers, method="POST")
        ends = time.monotonic() + self.timeout_s
        read = b""
        with _OPENER.open(request, timeout=self.timeout_s) as answer:
            while part := answer.read1(65536):  # piece by piece: a server that trickles has no more time than another
                read += part
                if time.monotonic() > ends:
                    raise TimeoutError(f"not within {self.timeout_s:g} s")
                if len(read) > _MAX_BYTES:
                    raise ValueError(f"more than {_MAX_BYTES:,} bytes")
        return json.loads(read)


def text_of(answer: Any) -> str:
    """The text of the first choice. Raises as `Endpoint.ask` wants it."""
    text = answer["choices"][0]["message"]["content"]
    if not isinstance(text, str):
        raise TypeError("no text in the answer")
    return text


def _asked_to_wait(header: str | None) -> float:
    """Seconds of a Retry-After header; 0 for none, or a date."""
    try:
        return min(max(float(header or 0), 0.0), _MOST_BETWEEN_S)
    except ValueError:
        return 0.0
