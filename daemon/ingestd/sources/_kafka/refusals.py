"""Which errors of kafka-python mean that we are refused, and how to say it to a person.

A refusal is a wrong set-up: waiting does not mend it. All else that fails between us and a broker is an outage. Errors
are looked at with all their causes: what TLS says of a certificate comes wrapped, its class lost and its text kept.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from kafka import errors

from ingestd.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

_RIGHTS = (
    (errors.TopicAuthorizationFailedError, "may not read or write the topic"),
    (errors.GroupAuthorizationFailedError, "may not use the consumer group"),
    (errors.ClusterAuthorizationFailedError, "may not do this to the cluster"),
    (errors.TransactionalIdAuthorizationFailedError, "may not use the transactional id"),
    (errors.AuthorizationError, "may not do this"),
)
NO_TLS = "the broker does not speak TLS on this port: use its TLS port, or leave the section tls out"
_TLS = {
    "CERTIFICATE_VERIFY_FAILED": "the broker's certificate is not accepted: see tls.ca_file and tls.check_hostname",
    "WRONG_VERSION_NUMBER": NO_TLS,
    "RECORD_LAYER_FAILURE": NO_TLS,
    "CERTIFICATE_REQUIRED": "the broker asks for a client's certificate: set tls.cert_file and tls.key_file",
    "UNKNOWN_CA": "the broker does not trust our certificate: see tls.cert_file",
    "BAD_CERTIFICATE": "the broker does not accept our certificate: see tls.cert_file",
    "CERTIFICATE_EXPIRED": "the broker says that our certificate has expired: see tls.cert_file",
    "CERTIFICATE_REVOKED": "the broker says that our certificate is revoked: see tls.cert_file",
    "HANDSHAKE_FAILURE": "the broker and we have no way of TLS in common: see tls.ciphers and tls.cert_file",
    "UNSUPPORTED_PROTOCOL": "the broker speaks no TLS from 1.2 up",
    "PROTOCOL_VERSION": "the broker speaks no TLS from 1.2 up",
}
"""What OpenSSL's reasons mean here. They stand in capitals in its messages, or as words in those of an alert."""


def refused(error: BaseException) -> str | None:
    """Return why we are refused, for a person; None: we are not, and this may pass by itself."""
    for one in _chain(error):
        if isinstance(one, ConfigError):
            return "; ".join(one.faults)
        reason = _credentials(one) or _rights(one) or tls_refusal(one)
        if reason is not None:
            return reason
    return None


def tls_refusal(error: BaseException) -> str | None:
    """Return what TLS refuses, from its own error or from one that quotes it."""
    if not isinstance(error, ssl.SSLError | errors.KafkaConnectionError):
        return None
    text = str(error)
    said = text.upper().replace(" ", "_")
    for reason, message in _TLS.items():
        if reason in said:
            detail = text.rpartition("certificate verify failed: ")[2].partition(" (_ssl")[0]
            return f"{message} ({detail})" if reason == "CERTIFICATE_VERIFY_FAILED" else message
    return None


def _credentials(error: BaseException) -> str | None:
    if isinstance(error, errors.SaslAuthenticationFailedError):
        return f"the broker refuses our credentials{_said(error)}: see the section sasl"
    if isinstance(error, errors.UnsupportedSaslMechanismError):
        return f"the broker does not take this mechanism{_said(error)}: see sasl.mechanism"
    if isinstance(error, errors.IllegalSaslStateError):
        return "the broker takes no SASL on this port: use its SASL port, or leave the section sasl out"
    if isinstance(error, errors.KafkaConfigurationError):
        return f"the client cannot be set up so{_said(error)}"
    return None


def _rights(error: BaseException) -> str | None:
    for kind, what in _RIGHTS:
        if isinstance(error, kind):
            return f"our user {what}{_said(error)}: have it allowed at the brokers"
    return None


def _said(error: errors.KafkaError) -> str:
    """Return what the broker added, if anything."""
    said = "; ".join(str(part) for part in error.args).removeprefix(f"{type(error).__name__}: ")
    return f" ({said})" if said and said not in {"None", type(error).__name__} else ""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()  # kafka-python's errors have no hash
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
