"""How brokers are trusted, and how we show them who we are: settings to kafka-python's options.

Owns the sections ``tls`` and ``sasl``, the TLS context (built here, so that a file that cannot be used is named with
its key), and the promise that no secret gets out: at debug level kafka-python logs requests, the bytes that it sends,
and the admin client's whole configuration, and a filter drops those lines. Handing kafka-python the paths of the
certificates was turned down: it opens them at each connection, where an error says neither file nor key. The client is
not imported here, so that reading a configuration stays quick.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import ssl
from pathlib import Path  # noqa: TC003 - pydantic reads the annotations
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from ingestd.errors import ConfigError

if TYPE_CHECKING:
    from kafka.net.sasl.oauth import AbstractTokenProvider

Mechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER", "AWS_MSK_IAM", "GSSAPI"]

_PASSWORD = frozenset({"username", "password"})
_CLIENT = frozenset({"token_url", "client_id", "client_secret"})
_FIELDS: dict[str, frozenset[str]] = {
    "PLAIN": _PASSWORD,
    "SCRAM-SHA-256": _PASSWORD,
    "SCRAM-SHA-512": _PASSWORD,
    "OAUTHBEARER": _CLIENT | {"token_file", "scope", "ca_file"},
    "AWS_MSK_IAM": frozenset(),
    "GSSAPI": frozenset({"kerberos_service", "kerberos_domain"}),
}
"""Which keys mean something, by the mechanism."""
_BYTES = "kafka.protocol.parser"
_LEAKING = ("kafka.admin.client", "kafka.net.connection", _BYTES)
_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})


class TlsConfig(BaseModel):
    """TLS to the brokers. Without ``ca_file`` the system's certificates are trusted."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    ca_file: Path | None = Field(None, description="Certificates to trust, PEM; default: the system's")
    cert_file: Path | None = Field(None, description="The client's certificate with its chain, PEM; needs key_file")
    key_file: Path | None = Field(None, description="The client's private key, PEM; needs cert_file")
    key_password: SecretStr | None = Field(None, description="The password of key_file, where it has one")
    check_hostname: bool = Field(True, description="Whether a broker's certificate must be for its host's name")
    ciphers: str | None = Field(None, description="What TLS 1.2 may use, as OpenSSL writes it; default: what is safe")

    @model_validator(mode="after")
    def _complete(self) -> TlsConfig:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("a client's certificate needs cert_file and key_file together")
        if self.key_password is not None and self.key_file is None:
            raise ValueError("key_password is of key_file, which is not set")
        return self


class SaslConfig(BaseModel):
    """Who we are to the brokers."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    mechanism: Mechanism = Field(description="PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, OAUTHBEARER, AWS_MSK_IAM or GSSAPI")
    username: str | None = Field(None, min_length=1, description="For PLAIN and SCRAM")
    password: SecretStr | None = Field(None, description="For PLAIN and SCRAM")
    token_file: Path | None = Field(
        None, description="For OAUTHBEARER: a file with the token, read again at each connection"
    )
    token_url: str | None = Field(None, description="For OAUTHBEARER: where a token is got with client credentials")
    client_id: str | None = Field(None, min_length=1, description="For token_url")
    client_secret: SecretStr | None = Field(None, description="For token_url")
    scope: str | None = Field(None, description="For token_url: what the token is for")
    ca_file: Path | None = Field(None, description="For token_url: certificates to trust, PEM; default: the system's")
    kerberos_service: str | None = Field(None, description="For GSSAPI: the brokers' service name; default: kafka")
    kerberos_domain: str | None = Field(None, description="For GSSAPI: the brokers' domain; default: each one's host")

    @field_validator("token_url")
    @classmethod
    def _safe(cls, url: str | None) -> str | None:
        if url is None:
            return None
        parts = urlsplit(url)
        if parts.username or parts.password:
            raise ValueError("keep the client's id and secret in keys of their own, addresses are shown in messages")
        if not parts.hostname or not (parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOCAL)):
            raise ValueError("must be an https address: the client's secret is sent there")
        return url

    @model_validator(mode="after")
    def _complete(self) -> SaslConfig:
        said = {name for name in type(self).model_fields if getattr(self, name) is not None} - {"mechanism"}
        strange = sorted(said - _FIELDS[self.mechanism])
        if strange:
            raise ValueError(f"{self.mechanism} has no use for {', '.join(strange)}")
        if self.mechanism == "OAUTHBEARER":
            self._check_tokens(said)
        missing = sorted((_FIELDS[self.mechanism] & _PASSWORD) - said, reverse=True)
        if missing:
            raise ValueError(f"{self.mechanism} needs {' and '.join(missing)}")
        return self

    def _check_tokens(self, said: set[str]) -> None:
        if "token_file" in said and len(said) > 1:
            raise ValueError("OAUTHBEARER takes its token from token_file or from token_url, not from both")
        missing = sorted(_CLIENT - said, reverse=True)
        if "token_file" not in said and missing:
            raise ValueError(f"OAUTHBEARER needs token_file, or token_url with client_id and client_secret: {missing}")


def client_options(tls: TlsConfig | None, sasl: SaslConfig | None) -> dict[str, Any]:
    """Return kafka-python's options for any of its clients. Tokens are got when it connects, not here.

    Raises:
        ConfigError: A file cannot be used, or the mechanism lacks something here.
    """
    _keep_secrets()
    options: dict[str, Any] = {"security_protocol": _protocol(tls, sasl)}
    if tls is not None:
        options["ssl_context"] = _context(tls)
    if sasl is not None:
        options["sasl_mechanism"] = sasl.mechanism
        options |= _sasl_options(sasl, tls)
    return options


def risks(tls: TlsConfig | None, sasl: SaslConfig | None) -> tuple[str, ...]:
    """Return what works and should still be known: a line each, with its cure."""
    found = []
    if tls is None and sasl is not None and sasl.mechanism in {"PLAIN", "OAUTHBEARER"}:
        what = "password" if sasl.mechanism == "PLAIN" else "token"
        found.append(f"sasl: {sasl.mechanism} without TLS sends the {what} in the clear; add a section tls")
    if tls is not None and not tls.check_hostname:
        found.append(
            "tls.check_hostname: is off, so any holder of a trusted certificate can pass for a broker; "
            "use a certificate for the brokers' names"
        )
    return tuple(found)


def _value(secret: SecretStr | None) -> str:
    return "" if secret is None else secret.get_secret_value()


def _protocol(tls: TlsConfig | None, sasl: SaslConfig | None) -> str:
    transport = "PLAINTEXT" if tls is None else "SSL"
    return transport if sasl is None else f"SASL_{transport}"


def _context(tls: TlsConfig) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = tls.check_hostname
    if tls.ciphers is not None:
        try:
            context.set_ciphers(tls.ciphers)
        except ssl.SSLError as error:
            raise ConfigError(f"tls.ciphers: {tls.ciphers!r} names no cipher that is known here") from error
    if tls.ca_file is None:
        context.load_default_certs()
    else:
        _trust(context, tls.ca_file, "tls.ca_file")
    if tls.cert_file is not None and tls.key_file is not None:
        _show(context, tls.cert_file, tls.key_file, tls.key_password)
    return context


def _trust(context: ssl.SSLContext, file: Path, key: str) -> None:
    _readable(file, key)
    try:
        context.load_verify_locations(file)
    except ssl.SSLError as error:
        raise ConfigError(f"{key}: {file} holds no certificate in PEM form") from error


def _show(context: ssl.SSLContext, certificate: Path, private: Path, password: SecretStr | None) -> None:
    if "-----BEGIN CERTIFICATE-----" not in _readable(certificate, "tls.cert_file"):
        raise ConfigError(f"tls.cert_file: {certificate} holds no certificate in PEM form")
    text = _readable(private, "tls.key_file")
    if "PRIVATE KEY-----" not in text:
        raise ConfigError(f"tls.key_file: {private} holds no private key in PEM form")
    if "ENCRYPTED" in text and password is None:
        raise ConfigError(f"tls.key_password: {private} is encrypted, and no password is set")
    try:
        # Never None: OpenSSL would ask the terminal.
        context.load_cert_chain(certificate, private, _value(password))
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"tls.key_file: {private} is not the key of the certificate {certificate}") from error
        if "ENCRYPTED" in text:
            raise ConfigError(f"tls.key_password: is not the password of {private}") from error
        raise ConfigError(f"tls.cert_file: {certificate} with the key {private} cannot be used: {error}") from error


def _readable(file: Path, key: str) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise ConfigError(f"{key}: {file} cannot be read: {error.strerror}") from error


def _sasl_options(sasl: SaslConfig, tls: TlsConfig | None) -> dict[str, Any]:
    match sasl.mechanism:
        case "OAUTHBEARER":
            return {"sasl_oauth_token_provider": _tokens(sasl)}
        case "AWS_MSK_IAM":
            _check_msk(tls)
            return {}
        case "GSSAPI":
            if importlib.util.find_spec("gssapi") is None:
                raise ConfigError("sasl.mechanism: GSSAPI needs a package that is not there: pip install gssapi")
            return {
                "sasl_kerberos_service_name": sasl.kerberos_service or "kafka",
                "sasl_kerberos_domain_name": sasl.kerberos_domain,
            }
        case _:
            return {"sasl_plain_username": sasl.username, "sasl_plain_password": _value(sasl.password)}


def _tokens(sasl: SaslConfig) -> AbstractTokenProvider:
    from ingestd.sources._kafka.tokens import FileTokens, OidcTokens  # noqa: PLC0415 - imports the client

    if sasl.token_file is not None:
        return FileTokens(sasl.token_file)
    context = ssl.create_default_context()
    if sasl.ca_file is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        _trust(context, sasl.ca_file, "sasl.ca_file")
    secret = sasl.client_secret or SecretStr("")
    return OidcTokens(sasl.token_url or "", sasl.client_id or "", secret, sasl.scope, context)


def _check_msk(tls: TlsConfig | None) -> None:
    if tls is None:
        raise ConfigError("sasl.mechanism: AWS_MSK_IAM works over TLS alone; add a section tls, which may be empty")
    try:
        session = importlib.import_module("botocore.session")
    except ImportError as error:
        raise ConfigError("sasl.mechanism: AWS_MSK_IAM needs botocore: pip install 'milvus-ingestd[msk]'") from error
    if not session.Session().get_config_variable("region"):
        raise ConfigError(
            "sasl.mechanism: AWS_MSK_IAM knows no region; set AWS_DEFAULT_REGION, or one in ~/.aws/config"
        )


def _keep_secrets() -> None:
    """Have the lines dropped that would show a password or a token. Doing it again changes nothing."""
    for name in _LEAKING:
        logging.getLogger(name).addFilter(_shows_no_secret)


def _shows_no_secret(record: logging.LogRecord) -> bool:
    if record.name == _BYTES and record.levelno < logging.INFO:
        return False  # what is sent and received, byte by byte: proofs of passwords, and documents
    # A dict as the only argument is the record's arguments themselves.
    arguments = record.args if isinstance(record.args, tuple) else (record.args,)
    return not any(
        type(one).__name__.startswith("Sasl") or (isinstance(one, dict) and any(_secret(key) for key in one))
        for one in arguments
    )


def _secret(key: object) -> bool:
    return isinstance(key, str) and key.startswith(("sasl_", "ssl_"))
