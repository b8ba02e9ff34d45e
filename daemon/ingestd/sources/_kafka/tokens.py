"""Tokens for OAUTHBEARER: from a file that somebody else renews, or from an OpenID provider with client credentials.

kafka-python asks for one at each connection, on the thread of its event loop, so fetching has a short time-out and a
token is kept until shortly before it expires. A thread that renews it ahead was turned down: connections are few.
"""

from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_plus

import urllib3
from kafka.net.sasl.oauth import AbstractTokenProvider

from ingestd.answers import bound_heads
from ingestd.errors import ConfigError, UnavailableError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from pathlib import Path

    from pydantic import SecretStr

FETCH_SECONDS = 10.0
MARGIN = 0.2
"""The share of a token's life that it is not used for, so that none expires on its way."""
_OK, _TOO_MANY, _SERVER_ERRORS = 200, 429, 500
_MOST = 200
"""The most characters of an answer that are shown."""


class FileTokens(AbstractTokenProvider):  # type: ignore[misc]  # kafka-python has no types
    """The token in a file, read anew each time: whoever renews it need not tell us.

    Args:
        file: Holds the token, and white space around it.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file

    def token(self) -> str:
        """Return the token.

        Raises:
            ConfigError: It cannot be read, or there is none.
        """
        try:
            found = self._file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no text"
            raise ConfigError(f"sasl.token_file: {self._file} cannot be read: {reason}") from error
        if not found:
            raise ConfigError(f"sasl.token_file: {self._file} is empty")
        return found


class OidcTokens(AbstractTokenProvider):  # type: ignore[misc]  # kafka-python has no types
    """Tokens of an OpenID provider (RFC 6749, 4.4: client credentials). Safe to call from several threads.

    Args:
        url: The provider's token endpoint.
        client_id: Who asks.
        client_secret: Its secret.
        scope: What for.
        context: For TLS.
        clock: Seconds that only go forward.
    """

    def __init__(
        self,
        url: str,
        client_id: str,
        client_secret: SecretStr,
        scope: str | None,
        context: ssl.SSLContext,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._url, self._client_id, self._secret, self._scope = url, client_id, client_secret, scope
        self._pool = urllib3.PoolManager(ssl_context=context, retries=False, timeout=FETCH_SECONDS)
        bound_heads(self._pool, FETCH_SECONDS)
        self._clock = clock
        self._lock = threading.Lock()
        self._token: str | None = None
        self._until = 0.0

    def token(self) -> str:
        """Return a token that is good for a while.

        Raises:
            ConfigError: The provider refuses us, or its certificate is not trusted.
            UnavailableError: It does not answer.
        """
        with self._lock:
            now = self._clock()
            if self._token is None or now >= self._until:
                self._token, life = self._fetch()
                self._until = now + life * (1 - MARGIN)
            return self._token

    def close(self) -> None:
        """Close the connections to the provider."""
        self._pool.clear()

    def _fetch(self) -> tuple[str, float]:
        fields = {"grant_type": "client_credentials"} | ({"scope": self._scope} if self._scope else {})
        # RFC 6749, 2.3.1: both parts are form-encoded before they are put together.
        user = f"{quote_plus(self._client_id)}:{quote_plus(self._secret.get_secret_value())}"
        headers = urllib3.make_headers(basic_auth=user)
        try:
            answer = self._pool.request("POST", self._url, fields=fields, headers=headers, encode_multipart=False)
        except urllib3.exceptions.SSLError as error:
            raise ConfigError(f"sasl.token_url: {self._url} is not trusted: {error}; see sasl.ca_file") from error
        except urllib3.exceptions.HTTPError as error:
            raise UnavailableError("kafka:tokens", f"sasl.token_url: {self._url} does not answer: {error}") from error
        if answer.status == _TOO_MANY or answer.status >= _SERVER_ERRORS:
            raise UnavailableError("kafka:tokens", f"sasl.token_url: {self._url} answers {answer.status}")
        found = _object(answer.data)
        if answer.status != _OK:
            reason = ": ".join(str(found[key])[:_MOST] for key in ("error", "error_description") if key in found)
            raise ConfigError(
                f"sasl.token_url: {self._url} refuses the client ({answer.status}): {reason or 'no reason'}"
            )
        token, life = found.get("access_token"), found.get("expires_in", 0)
        if not isinstance(token, str) or not token or not isinstance(life, int | float):
            raise ConfigError(f"sasl.token_url: {self._url} answers without an access_token: is it a token endpoint?")
        return token, float(life)


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
