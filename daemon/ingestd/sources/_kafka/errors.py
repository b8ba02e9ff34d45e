"""What the client's errors mean: nothing that waiting mends, or an outage."""

from __future__ import annotations

import re

from kafka.errors import (
    FencedInstanceIdError,
    InconsistentGroupProtocolError,
    InvalidGroupIdError,
    InvalidSessionTimeoutError,
    InvalidTopicError,
    KafkaConfigurationError,
    UnsupportedVersionError,
)

from ingestd.errors import ConfigError
from ingestd.sources._kafka.refusals import refused

_FATAL = (
    InconsistentGroupProtocolError,
    InvalidGroupIdError,
    InvalidSessionTimeoutError,
    InvalidTopicError,
    KafkaConfigurationError,
    UnsupportedVersionError,
)
_WORDS = re.compile(r"(?<=[a-z])(?=[A-Z])")


def raise_if_refused(name: str, error: BaseException) -> None:
    """Raise what no waiting mends; return if it is an outage.

    Args:
        name: The source's name.
        error: Of the client.

    Raises:
        ConfigError: Credentials or rights are refused, or the set-up contradicts the group's.
    """
    reason = refused(error)
    if reason is not None:
        raise ConfigError(f"sources.{name}: {reason}") from error
    if isinstance(error, FencedInstanceIdError):
        raise ConfigError(
            f"sources.{name}.group_instance_id: another member of the group has taken this id over; "
            "give each member one of its own"
        ) from error
    if isinstance(error, _FATAL):
        raise ConfigError(f"sources.{name}: the brokers refuse this member: {told(error)}") from error


def told(error: BaseException) -> str:
    """Return an error of the client for people: its class's name in words, and its message."""
    words = _WORDS.sub(" ", type(error).__name__.removesuffix("Error")).lower()
    message = str(error).partition("\n")[0]
    return f"{words} ({message})" if message and message != type(error).__name__ else words
