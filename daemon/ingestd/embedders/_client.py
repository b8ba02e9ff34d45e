"""Requests to a provider, and what its answers mean.

Owns one embedder's connections and the verdict on every way in which a request can end. What is said of the texts
(400, 413, 422) is the caller's to look into: it halves. What is said of us (401, 403, 404) is the configuration's fault
at the start; later it is an outage, for documents that come meanwhile must not suffer from a key that was revoked.
Everything else that is no answer is an outage too: 500s, 408s, connections that break, HTML where JSON should be.

The providers' SDKs were turned down: eight of them, each with an HTTP client, tries and time-outs of its own, and none
that says which text of a batch was wrong. They are the tests' oracle.
"""

from __future__ import annotations

import json
import re
import ssl
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.exceptions import HTTPError

from ingestd.answers import PackedError, TooLargeError, body, bound_heads, retry_after
from ingestd.embedders._pace import seconds_in, until_renewed
from ingestd.errors import ConfigError, DocumentError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from urllib3 import BaseHTTPResponse

ANSWER_BYTES = 512 * 1024 * 1024
"""2,048 vectors of 3,072 numbers of 20 characters are a quarter of that."""
CONNECT_SECONDS = 10.0
SHOWN = 300
"""The most characters of an answer that are shown."""

_UNASKED = (
    urllib3.exceptions.NewConnectionError,
    urllib3.exceptions.ConnectTimeoutError,
    urllib3.exceptions.ProxyError,
)
"""Errors that come before a request was sent."""
_OK, _TOO_MANY, _SERVER = range(200, 300), 429, 500
_ABOUT_TEXTS = frozenset({400, 413, 422})
_ABOUT_US = frozenset({401, 402, 403, 404, 405, 410})
_SPENT = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
"""OpenAI's codes for 429s that no waiting cures."""


class RefusedTexts(DocumentError):  # noqa: N818 - a verdict on a batch, which the caller looks into
    """The provider says that something is wrong with the texts: with one of them, or with all that it is asked."""


class TooFast(Exception):  # noqa: N818 - a verdict on a request
    """The provider asks for fewer requests.

    Args:
        message: What it said.
        wait: The seconds that it wants us to wait; None: it does not say.
    """

    def __init__(self, message: str, wait: float | None) -> None:
        super().__init__(message)
        self.wait = wait


class Unanswered(UnavailableError):  # noqa: N818 - a verdict on a request
    """The provider was asked, and did not answer: it may have worked, and want to be paid."""


class Unfit(ConfigError):  # noqa: N818 - a verdict on the configuration
    """The provider refuses us, whatever the texts are."""


class Client:
    """Asks one provider for one embedder. Safe to call from several threads.

    Args:
        name: The embedder's, for messages.
        base_url: What the paths are appended to.
        headers: Of each request: secrets among them, so they are in no message.
        timeout: Seconds for a whole answer.
        connections: The most that are open.
        ca_file: Certificates to trust, PEM; None: the system's.

    Raises:
        ConfigError: ``ca_file`` is of no use.
    """

    def __init__(
        self,
        name: str,
        base_url: str,
        headers: Mapping[str, str],
        *,
        timeout: float,
        connections: int,
        ca_file: Path | None,
    ) -> None:
        self.dependency = f"provider:{name}"
        self.host = urlsplit(base_url).netloc.rpartition("@")[2]
        self._base = base_url.rstrip("/")
        self._headers = {"Accept": "application/json", "Accept-Encoding": "identity"} | dict(headers)
        self._secrets = [value.removeprefix("Bearer ") for value in headers.values()]
        self._timeout = timeout
        self._pool = _pool(self._base, timeout, connections, ca_file)

    def post(self, path: str, payload: object) -> tuple[Any, Mapping[str, str]]:
        """Ask, and return the answer as JSON has it, and its headers.

        Raises:
            RefusedTexts: The provider says that it is the texts.
            TooFast: It wants fewer requests.
            Unfit: It refuses us.
            UnavailableError: It is down, slow, or answers nonsense.
        """
        # Plain ASCII with escapes: half a surrogate pair is kept from breaking the request, and the provider judges it.
        data = json.dumps(payload, separators=(",", ":")).encode()
        return self._request("POST", path, data, {"Content-Type": "application/json"})

    def get(self, path: str) -> Any:  # noqa: ANN401 - JSON
        """Return what is at a path; raises as ``post``."""
        return self._request("GET", path, None, {})[0]

    def close(self) -> None:
        """Let go of idle connections."""
        self._pool.clear()

    def _request(
        self, method: str, path: str, data: bytes | None, headers: Mapping[str, str]
    ) -> tuple[Any, Mapping[str, str]]:
        deadline = time.monotonic() + self._timeout
        try:
            response = self._pool.request(
                method,
                self._base + path,
                body=data,
                headers={**self._headers, **headers},
                retries=False,
                redirect=False,
                preload_content=False,
            )
            content = _whole(response, deadline)
        except urllib3.exceptions.SSLError as error:
            raise self._down(f"its certificate is not trusted, or TLS fails: {error}; see ca_file") from error
        except (TooLargeError, PackedError) as error:
            raise self._down("its answer is larger than any that was asked for, or compressed") from error
        except HTTPError as error:
            down = self._down(f"no answer: {_cause(error)}")
            if isinstance(error, _UNASKED):
                raise down from error
            raise Unanswered(self.dependency, str(down)) from error
        if response.status in _OK:
            return self._parsed(content), response.headers
        raise self._verdict(response, content)

    def _parsed(self, content: bytes) -> Any:  # noqa: ANN401 - JSON
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise self._down(f"it answers with something that is no JSON: {self._shown(content)}") from error

    def _verdict(self, response: BaseHTTPResponse, content: bytes) -> Exception:
        status, said = response.status, self._shown(content)
        message = f"{self.host} answers {status}: {said}"
        if status == _TOO_MANY:
            if "too large" in said.lower():
                # OpenAI's answer to a request that is larger than a minute's tokens: no pace would let it pass.
                return RefusedTexts(message)
            if _code(content) in _SPENT:
                return UnavailableError(self.dependency, message, wait=_wait(response, content), refused=True)
            return TooFast(message, _wait(response, content))
        if status in _ABOUT_TEXTS:
            return RefusedTexts(message)
        if status in _ABOUT_US:
            return Unfit(f"{message}; look at api_key, model and base_url")
        return UnavailableError(self.dependency, message, wait=_wait(response, content))

    def _down(self, why: str) -> UnavailableError:
        return UnavailableError(self.dependency, f"{self.host}: {why}")

    def _shown(self, content: bytes) -> str:
        """Return what an answer says, in one short line without our secrets: some providers repeat the key."""
        text = _message(content)
        for secret in filter(None, self._secrets):
            text = text.replace(secret, "**********")
        text = " ".join("".join(character if character.isprintable() else " " for character in text).split())
        return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _pool(base: str, timeout: float, connections: int, ca_file: Path | None) -> urllib3.PoolManager:
    context = ssl.create_default_context()
    if ca_file is not None:
        try:
            context = ssl.create_default_context(cafile=str(ca_file))
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"ca_file: {ca_file} cannot be used: {error}") from error
    wishes: dict[str, Any] = {
        "timeout": urllib3.Timeout(connect=min(CONNECT_SECONDS, timeout), read=timeout),
        "maxsize": connections,
        "retries": False,
        "ssl_context": context,
    }
    parts = urlsplit(base)
    proxy = getproxies().get(parts.scheme)
    if proxy and not proxy_bypass(parts.netloc.rpartition("@")[2]):
        proxy = proxy if "://" in proxy else f"http://{proxy}"
        user = urlsplit(proxy)
        if user.username:
            said = f"{unquote(user.username)}:{unquote(user.password or '')}"
            wishes["proxy_headers"] = urllib3.make_headers(proxy_basic_auth=said)
        try:
            return _bounded(urllib3.ProxyManager(proxy, **wishes), timeout)
        except urllib3.exceptions.ProxySchemeUnknown as error:
            variable = f"{parts.scheme}_proxy"
            raise ConfigError(f"base_url: the proxy in ${variable} cannot be used: {error}") from error
    return _bounded(urllib3.PoolManager(**wishes), timeout)


def _bounded(pool: urllib3.PoolManager, seconds: float) -> urllib3.PoolManager:
    bound_heads(pool, seconds)
    return pool


def _whole(response: BaseHTTPResponse, deadline: float) -> bytes:
    try:
        content = body(response, ANSWER_BYTES, deadline)
    except BaseException:
        response.close()  # with its connection: what is left of the body is not waited for
        raise
    response.release_conn()
    return content


def _cause(error: HTTPError) -> str:
    """Return why there was no answer, without urllib3's objects in it."""
    reason = getattr(error, "reason", None) or error
    text = re.sub(r"^\S+\(host=[^)]*\): ", "", str(reason))
    return text.rpartition(">: ")[2] or type(reason).__name__


def _message(content: bytes) -> str:
    """Return the provider's own words for what is wrong, wherever it puts them."""
    text = content[: 64 * 1024].decode("utf-8", "replace")
    try:
        said: Any = json.loads(text)
    except (ValueError, RecursionError):
        return text or "nothing"
    for key in ("error", "message", "detail"):
        if isinstance(said, dict) and said.get(key):
            inner = said[key]
            said = inner.get("message", inner) if isinstance(inner, dict) else inner
            break
    return said if isinstance(said, str) else json.dumps(said)


def _wait(response: BaseHTTPResponse, content: bytes) -> float | None:
    """Return the seconds that an answer asks us to wait, wherever it says so; None: nowhere.

    OpenAI's clients read ``retry-after-ms`` first; Gemini says it in the body (google.rpc.RetryInfo), others only when
    what is used up comes back. A zero says nothing, where something else says more.
    """
    milliseconds = seconds_in(f"{response.headers.get('retry-after-ms', '').strip()}ms")
    said = (milliseconds, retry_after(response), _retry_delay(content), until_renewed(response.headers))
    waits = [one for one in said if one is not None]
    return next((one for one in waits if one > 0), waits[0] if waits else None)


def _retry_delay(content: bytes) -> float | None:
    try:
        details = json.loads(content[: 64 * 1024])["error"]["details"]
        delays = [one["retryDelay"] for one in details if isinstance(one, dict) and "retryDelay" in one]
    except (ValueError, RecursionError, KeyError, TypeError):
        return None
    return seconds_in(delays[0]) if delays and isinstance(delays[0], str) else None


def _code(content: bytes) -> str | None:
    try:
        said = json.loads(content)
        code = said["error"]["code"] or said["error"]["type"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return None
    return code if isinstance(code, str) else None
