"""The sections ``tls`` and ``sasl``: what they take, what they become, and what they never show."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from kafka import errors
from pydantic import SecretStr, ValidationError

from ingestd.errors import ConfigError, UnavailableError
from ingestd.sources._kafka.refusals import refused
from ingestd.sources._kafka.security import SaslConfig, TlsConfig, client_options, risks
from ingestd.sources._kafka.tokens import OidcTokens

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECRET = "do-not-show-this"
PLAIN = {"mechanism": "PLAIN", "username": "reader", "password": SECRET}
UNTRUSTED = "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate (_ssl.c:1006)"
ASKED_FOR = "tlsv13 alert certificate required (_ssl.c:2580)"
OIDC = {
    "mechanism": "OAUTHBEARER",
    "token_url": "https://id.example.org/token",
    "client_id": "ingestd",
    "client_secret": SECRET,
}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"cert_file": "c"}, "cert_file and key_file together"),
        ({"key_file": "k"}, "cert_file and key_file together"),
        ({"key_password": SECRET}, "key_password is of key_file"),
    ],
)
def test_half_a_certificate_is_refused(given: dict[str, str], said: str) -> None:
    """A certificate without its key, a key without its certificate, a password without a key: named, not ignored."""
    with pytest.raises(ValidationError, match=said) as caught:
        TlsConfig.model_validate(given)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"mechanism": "PLAIN"}, "PLAIN needs username and password"),
        ({"mechanism": "SCRAM-SHA-512", "username": "u"}, "SCRAM-SHA-512 needs password"),
        ({**PLAIN, "token_file": "t"}, "PLAIN has no use for token_file"),
        ({"mechanism": "AWS_MSK_IAM", "username": "u"}, "AWS_MSK_IAM has no use for username"),
        ({"mechanism": "GSSAPI", "password": SECRET}, "GSSAPI has no use for password"),
        ({"mechanism": "OAUTHBEARER"}, "needs token_file, or token_url with client_id and client_secret"),
        ({"mechanism": "OAUTHBEARER", "token_url": "https://x/t", "client_id": "c"}, "client_secret"),
        ({**OIDC, "token_file": "t"}, "not from both"),
        ({**OIDC, "token_url": "http://id.example.org/token"}, "must be an https address"),
        ({**OIDC, "token_url": f"https://u:{SECRET}@id.example.org/token"}, "keys of their own"),
        ({"mechanism": "plain"}, "PLAIN"),
    ],
)
def test_what_a_mechanism_does_not_take_is_refused(given: dict[str, str], said: str) -> None:
    """Each mechanism says what it needs and what it has no use for."""
    with pytest.raises(ValidationError) as caught:
        SaslConfig.model_validate(given)
    assert said in caught.value.errors()[0]["msg"]


def test_secrets_are_in_no_representation() -> None:
    """Neither password nor secret is in a settings' text or JSON."""
    for settings in (SaslConfig.model_validate(PLAIN), SaslConfig.model_validate(OIDC)):
        assert SECRET not in repr(settings) + str(settings) + settings.model_dump_json()


def test_the_protocol_says_what_is_configured() -> None:
    """TLS and SASL, each or both or neither, become the protocol that kafka-python knows them by."""
    tls, sasl = TlsConfig(), SaslConfig.model_validate(PLAIN)
    found = [
        client_options(*both)["security_protocol"] for both in ((None, None), (tls, None), (None, sasl), (tls, sasl))
    ]
    assert ["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] == found


def test_passwords_go_to_the_client() -> None:
    """PLAIN and SCRAM have the same two options."""
    for mechanism in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"):
        options = client_options(None, SaslConfig.model_validate({**PLAIN, "mechanism": mechanism}))
        wanted = {"sasl_mechanism": mechanism, "sasl_plain_username": "reader", "sasl_plain_password": SECRET}
        assert wanted == {name: value for name, value in options.items() if name.startswith("sasl_")}


def test_what_is_sent_in_the_clear_is_said() -> None:
    """PLAIN and tokens without TLS are allowed, and named; so is a host name that is not checked."""
    plain = SaslConfig.model_validate(PLAIN)
    (said,) = risks(None, plain)
    assert "PLAIN without TLS" in said
    assert () == risks(TlsConfig(), plain)
    assert () == risks(None, SaslConfig.model_validate({**PLAIN, "mechanism": "SCRAM-SHA-256"}))
    (said,) = risks(TlsConfig(check_hostname=False), plain)
    assert said.startswith("tls.check_hostname")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with an authority, a certificate with its key, plain and encrypted, and files that are none of these."""
    authority = trustme.CA()
    ours = authority.issue_cert("client.example.org")
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    ours.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    ours.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    authority.issue_cert("other").private_key_pem.write_to_path(str(tmp_path / "other.pem"))
    key = serialization.load_pem_private_key(ours.private_key_pem.bytes(), None)
    locked = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(SECRET.encode()),
    )
    (tmp_path / "locked.pem").write_bytes(locked)
    (tmp_path / "text.pem").write_text("no certificate\n")
    return tmp_path


@pytest.mark.parametrize(
    ("given", "key", "said"),
    [
        ({"ca_file": "none.pem"}, "tls.ca_file", "cannot be read: No such file or directory"),
        ({"ca_file": "text.pem"}, "tls.ca_file", "no certificate in PEM form"),
        ({"cert_file": "none.pem", "key_file": "key.pem"}, "tls.cert_file", "cannot be read"),
        ({"cert_file": "text.pem", "key_file": "key.pem"}, "tls.cert_file", "no certificate in PEM form"),
        ({"cert_file": "cert.pem", "key_file": "none.pem"}, "tls.key_file", "cannot be read"),
        ({"cert_file": "cert.pem", "key_file": "text.pem"}, "tls.key_file", "no private key in PEM form"),
        ({"cert_file": "cert.pem", "key_file": "other.pem"}, "tls.key_file", "is not the key of the certificate"),
        ({"cert_file": "cert.pem", "key_file": "locked.pem"}, "tls.key_password", "is encrypted"),
        (
            {"cert_file": "cert.pem", "key_file": "locked.pem", "key_password": "no"},
            "tls.key_password",
            "not the passw",
        ),
        ({"ciphers": "NONSENSE"}, "tls.ciphers", "names no cipher"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_its_key(
    files: Path, given: dict[str, str], key: str, said: str
) -> None:
    """Unreadable, of the wrong kind, of another pair, locked: each says which file, which key and why."""
    settings = {name: str(files / value) if name.endswith("_file") else value for name, value in given.items()}
    with pytest.raises(ConfigError) as caught:
        client_options(TlsConfig.model_validate(settings), None)
    (fault,) = caught.value.faults
    assert fault.startswith(f"{key}: ")
    assert said in fault


def test_a_locked_key_opens_with_its_password(files: Path) -> None:
    """The password of the key file is used, and TLS begins at 1.2 with host names checked."""
    given = {"ca_file": "ca.pem", "cert_file": "cert.pem", "key_file": "locked.pem"}
    settings = {name: str(files / value) for name, value in given.items()}
    context = client_options(TlsConfig.model_validate({**settings, "key_password": SECRET}), None)["ssl_context"]
    assert (ssl.TLSVersion.TLSv1_2, True, ssl.CERT_REQUIRED) == (
        context.minimum_version,
        context.check_hostname,
        context.verify_mode,
    )
    assert 1 == len(context.get_ca_certs()), "the system's certificates are trusted beside the file's"


def test_msk_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """IAM needs TLS and a region; with both, nothing but the mechanism is said to the client."""
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    sasl = SaslConfig(mechanism="AWS_MSK_IAM")
    with pytest.raises(ConfigError, match="over TLS alone"):
        client_options(None, sasl)
    with pytest.raises(ConfigError, match="AWS_DEFAULT_REGION"):
        client_options(TlsConfig(), sasl)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    options = client_options(TlsConfig(), sasl)
    assert {"ssl_context", "security_protocol", "sasl_mechanism"} == options.keys()


def test_a_token_file_is_read_each_time(tmp_path: Path) -> None:
    """What renews it need not tell us; a file that is gone or empty is named."""
    file = tmp_path / "token"
    file.write_text("first\n")
    provider = client_options(None, SaslConfig(mechanism="OAUTHBEARER", token_file=file))["sasl_oauth_token_provider"]
    assert "first" == provider.token()
    file.write_text("second\n")
    assert "second" == provider.token()
    file.write_text("\n")
    with pytest.raises(ConfigError, match=f"sasl.token_file: {file} is empty"):
        provider.token()
    file.unlink()
    with pytest.raises(ConfigError, match=f"sasl.token_file: {file} cannot be read"):
        provider.token()


class _Provider(BaseHTTPRequestHandler):
    """An OpenID provider that answers as its server was told, and keeps what it was asked."""

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.asked.append((self.headers["Authorization"], asked))  # type: ignore[attr-defined]
        status, answer = self.server.answer  # type: ignore[attr-defined]
        body = json.dumps({**answer, "access_token": f"token-{len(self.server.asked)}"} if status == 200 else answer)  # type: ignore[attr-defined]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def provider() -> Iterator[Any]:
    """A provider of tokens; set its ``answer``, read what it was ``asked``."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Provider) as server:
        server.asked = []  # type: ignore[attr-defined]
        server.answer = (200, {"expires_in": 100})  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def clock() -> list[float]:
    """What time it is."""
    return [0.0]


@pytest.fixture
def tokens(provider: Any, clock: list[float]) -> Iterator[OidcTokens]:
    """Tokens of the provider."""
    url = f"http://127.0.0.1:{provider.server_port}/token"
    context = ssl.create_default_context()
    made = OidcTokens(url, "me", SecretStr("a+b c"), "kafka", context, clock=lambda: clock[0])
    yield made
    made.close()


def test_a_token_is_kept_until_shortly_before_it_expires(tokens: OidcTokens, provider: Any, clock: list[float]) -> None:
    """One request serves all connections for four fifths of the token's life, then there is another."""
    assert ["token-1", "token-1"] == [tokens.token(), tokens.token()]
    clock[0] = 79
    assert "token-1" == tokens.token()
    clock[0] = 81
    assert "token-2" == tokens.token()
    authorization, asked = provider.asked[0]
    assert "Basic bWU6YSUyQmIrYw==" == authorization  # me:a%2Bb+c, as RFC 6749 encodes both parts
    assert "grant_type=client_credentials&scope=kafka" == asked


def test_a_provider_that_refuses_is_no_outage(tokens: OidcTokens, provider: Any) -> None:
    """A refusal is a wrong set-up and says the provider's reason; being busy or broken is an outage."""
    provider.answer = (401, {"error": "invalid_client", "error_description": "no such client"})
    with pytest.raises(ConfigError, match=r"refuses the client \(401\): invalid_client: no such client") as caught:
        tokens.token()
    assert "a+b c" not in str(caught.value)
    for status in (429, 503):
        provider.answer = (status, {})
        with pytest.raises(UnavailableError, match=f"answers {status}"):
            tokens.token()
    provider.answer = (200, {"expires_in": "soon"})
    with pytest.raises(ConfigError, match="without an access_token"):
        tokens.token()


def test_a_provider_that_is_away_is_an_outage(tokens: OidcTokens, provider: Any) -> None:
    """Nobody there: worth another try."""
    provider.shutdown()
    provider.socket.close()
    with pytest.raises(UnavailableError, match="does not answer"):
        tokens.token()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (errors.SaslAuthenticationFailedError("SaslAuthenticationFailedError: no such user"), "no such user"),
        (errors.UnsupportedSaslMechanismError(), "sasl.mechanism"),
        (errors.IllegalSaslStateError(), "takes no SASL"),
        (errors.TopicAuthorizationFailedError("documents"), r"topic \(documents\)"),
        (errors.GroupAuthorizationFailedError("ingestd"), r"group \(ingestd\)"),
        (errors.ClusterAuthorizationFailedError(), "cluster"),
        (errors.DelegationTokenAuthorizationFailedError(), "may not do this"),
        (errors.KafkaConnectionError(f"Handshake failed: {UNTRUSTED}"), r"tls.ca_file .* \(self-signed certificate\)"),
        (errors.KafkaConnectionError(f"[SSL: X] {ASKED_FOR}"), "tls.cert_file and tls.key_file"),
        (ConfigError("sasl.token_file: t is empty"), "sasl.token_file: t is empty"),
    ],
)
def test_refusals_are_told_from_outages(error: Exception, said: str) -> None:
    """What the brokers refuse for good says so to a person, also as the cause of something else."""
    reason = refused(error)
    assert reason is not None
    outer = errors.KafkaTimeoutError("Unable to bootstrap")
    with contextlib.suppress(errors.KafkaTimeoutError):
        raise outer from error
    assert refused(outer) == reason
    assert re.search(said, reason), reason


@pytest.mark.parametrize(
    "error",
    [
        errors.KafkaTimeoutError("Unable to bootstrap from x"),
        errors.KafkaConnectionError("111 ECONNREFUSED"),
        errors.CoordinatorNotAvailableError(),
        errors.NotLeaderForPartitionError(),
        ConnectionResetError("reset"),
        ssl.SSLEOFError("EOF occurred in violation of protocol"),
    ],
)
def test_outages_are_no_refusals(error: Exception) -> None:
    """What may pass by itself is None."""
    assert refused(error) is None


def test_errors_in_a_ring_end() -> None:
    """An error that is its own cause's cause does not hang us."""
    one, two = errors.KafkaConnectionError("one"), errors.KafkaConnectionError("two")
    one.__cause__, two.__cause__ = two, one
    assert refused(one) is None


def test_lines_that_would_show_a_secret_are_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """At debug level kafka-python logs a client's configuration whole; nothing of that comes out, the rest does."""
    client_options(None, SaslConfig.model_validate(PLAIN))
    caplog.set_level(logging.DEBUG)
    log = logging.getLogger("kafka.admin.client")
    log.debug("Starting KafkaAdminClient with configuration: %s", {"sasl_plain_password": SECRET})
    log.debug("something %s", "else")
    assert ["something else"] == [record.getMessage() for record in caplog.records]
