"""Brokers that refuse us: exit 78 with the cause, in ``run`` and in ``check``, and no secret in any output."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.faults.kafka_place import SOURCE, Place

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fixtures.daemon import Workplace
    from tests.fixtures.sasl_broker import SaslBroker
    from tests.fixtures.tls_proxy import TlsProxy

pytestmark = [pytest.mark.lite, pytest.mark.kafka]

SECRET = "hush-4711"


def test_wrong_credentials(workplace: Workplace, sasl_broker: Callable[..., SaslBroker]) -> None:
    """The log and ``check`` name the section to see to; the password is in neither, at whatever level."""
    broker = sasl_broker("SCRAM-SHA-256")
    sasl = {"mechanism": "SCRAM-SHA-256", "username": "reader", "password": SECRET}
    _is_refused(workplace, broker.bootstrap, "the broker refuses our credentials", sasl=sasl)


def test_an_untrusted_certificate(workplace: Workplace, tls_tansu: TlsProxy) -> None:
    """A broker whose authority is not the system's, and none is named."""
    _is_refused(workplace, tls_tansu.address, "the broker's certificate is not accepted: see tls.ca_file", tls={})


def _is_refused(workplace: Workplace, bootstrap: str, cause: str, **source: Any) -> None:
    Place(workplace, bootstrap, partitions=0, **source)
    workplace.configure("log.level", "debug")
    ran = workplace.ask("run")
    assert ran.code == 78, ran.err
    ended = [line for line in ran.err.splitlines() if "the set-up is wrong, and the process ends" in line]
    assert len(ended) == 1, ran.err
    assert f"source/{SOURCE}" in ended[0], ended
    assert cause in ended[0], ended
    checked = workplace.ask("check")
    assert checked.code == 1, checked.out
    assert any(line.startswith("FAIL") and cause in line for line in checked.out.splitlines()), checked.out
    for said in (ran.out, ran.err, checked.out, checked.err):
        assert SECRET not in said
    workplace.until_gone()
