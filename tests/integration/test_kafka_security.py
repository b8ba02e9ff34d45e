"""TLS and SASL against real brokers, and against one that only knows who may come in."""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from kafka import KafkaConsumer, errors
from kafka.admin import KafkaAdminClient
from tests.fixtures.brokers import create_topic, produce, serve_tls

from ingestd.errors import ConfigError, UnavailableError
from ingestd.sources._kafka.preflight import preflight
from ingestd.sources._kafka.refusals import refused
from ingestd.sources._kafka.security import SaslConfig, TlsConfig, client_options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.fixtures.brokers import Noida, Tansu, TlsProxy
    from tests.fixtures.sasl_broker import SaslBroker

pytestmark = pytest.mark.kafka

SECONDS = 2.0
SECRET = "do-not-show-this"
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")


def _tls(folder: Path, authority: trustme.CA, **more: Any) -> TlsConfig:
    file = folder / "ca.pem"
    authority.cert_pem.write_to_path(str(file))
    return TlsConfig.model_validate({"ca_file": str(file), **more})


def _certificate(folder: Path, authority: trustme.CA) -> dict[str, str]:
    ours = authority.issue_cert("client.example.org")
    ours.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    ours.private_key_pem.write_to_path(str(folder / "key.pem"))
    return {"cert_file": str(folder / "cert.pem"), "key_file": str(folder / "key.pem")}


def _sasl(mechanism: str, **more: Any) -> SaslConfig:
    return SaslConfig.model_validate({"mechanism": mechanism, "username": "reader", "password": "right", **more})


def _try(bootstrap: str, tls: TlsConfig | None = None, sasl: SaslConfig | None = None) -> None:
    preflight([bootstrap], client_options(tls, sasl), SECONDS)


def _consume(bootstrap: str, options: dict[str, Any], topic: str = "t") -> list[Any]:
    consumer = KafkaConsumer(
        topic,
        bootstrap_servers=bootstrap,
        auto_offset_reset="earliest",
        group_id=None,
        consumer_timeout_ms=10_000,
        **options,
    )
    try:
        return [next(consumer).value]
    finally:
        consumer.close()


def test_records_come_over_tls(tls_tansu: TlsProxy, tmp_path: Path) -> None:
    """With the authority's certificate the preflight passes, and a client with the same options gets records."""
    tls = _tls(tmp_path, tls_tansu.authority)
    _try(tls_tansu.address, tls)
    options = client_options(tls, None)
    create_topic(tls_tansu.address, "t", 1, **options)
    produce(tls_tansu.address, "t", [(b"k", b"over TLS", [], None)], **options)
    assert [b"over TLS"] == _consume(tls_tansu.address, options)


def test_mutual_tls_needs_our_certificate(mutual_tls_tansu: TlsProxy, tmp_path: Path) -> None:
    """Ours lets us in; none, or one of another authority, is refused with the keys to look at."""
    address, authority = mutual_tls_tansu.address, mutual_tls_tansu.authority
    _try(address, _tls(tmp_path, authority, **_certificate(tmp_path, authority)))
    with pytest.raises(ConfigError, match=r"tls\.cert_file"):
        _try(address, _tls(tmp_path, authority))
    with pytest.raises(ConfigError, match=r"tls\.cert_file|not accept ours"):
        _try(address, _tls(tmp_path, authority, **_certificate(tmp_path, trustme.CA())))


def test_another_authority_is_refused(tls_tansu: TlsProxy, tmp_path: Path) -> None:
    """A broker's certificate that is not of the authority that we trust: no outage, and tls.ca_file is named."""
    for tls in (_tls(tmp_path, trustme.CA()), TlsConfig()):
        with pytest.raises(ConfigError, match=r"certificate is not accepted: see tls\.ca_file"):
            _try(tls_tansu.address, tls)


def test_another_host_s_certificate_is_refused(tmp_path: Path) -> None:
    """Unless the check of the name is switched off."""
    proxies: Iterator[TlsProxy] = serve_tls(tmp_path, names=("elsewhere.example.org",))
    proxy = next(proxies)
    with pytest.raises(ConfigError, match=r"tls\.check_hostname \(IP address mismatch"):
        _try(proxy.address, _tls(tmp_path, proxy.authority))
    _try(proxy.address, _tls(tmp_path, proxy.authority, check_hostname=False))
    assert next(proxies, None) is None


def test_tls_where_there_is_none_and_the_other_way_round(tansu: Tansu, tls_tansu: TlsProxy, tmp_path: Path) -> None:
    """Both are a wrong set-up and say which section to add or leave out, though the broker says nothing at all."""
    with pytest.raises(ConfigError, match="does not speak TLS on this port"):
        _try(tansu.bootstrap, _tls(tmp_path, tls_tansu.authority))
    with pytest.raises(ConfigError, match="speaks TLS on this port: add a section tls"):
        _try(tls_tansu.address)


def test_records_come_over_sasl(noida: Noida) -> None:
    """PLAIN on a real broker: the preflight passes, and a client with the same options gets records."""
    sasl = _sasl("PLAIN")
    _try(noida.bootstrap, None, sasl)
    options = client_options(None, sasl)
    create_topic(noida.bootstrap, "over-sasl", 1, **options)
    produce(noida.bootstrap, "over-sasl", [(b"k", b"over SASL", [], None)], **options)
    assert [b"over SASL"] == _consume(noida.bootstrap, options, "over-sasl")


def test_a_mechanism_that_a_broker_lacks_is_refused(noida: Noida, tansu: Tansu) -> None:
    """Where the client would say after half a minute that it could not bootstrap."""
    for broker, mechanism in ((noida, "SCRAM-SHA-256"), (tansu, "PLAIN")):
        with pytest.raises(ConfigError, match=r"sasl\.mechanism"):
            _try(broker.bootstrap, None, _sasl(mechanism))


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_password_is_right_or_wrong(mechanism: str, sasl_broker: Callable[..., SaslBroker]) -> None:
    """The right one passes; a wrong one, or another user, is refused with the broker's words, and not shown."""
    broker = sasl_broker(mechanism)
    _try(broker.bootstrap, None, _sasl(mechanism))
    assert 1 == broker.admitted
    for wrong in ({"password": SECRET}, {"username": "stranger"}):
        with pytest.raises(ConfigError, match=r"refuses our credentials .*who are you\?") as caught:
            _try(broker.bootstrap, None, _sasl(mechanism, **wrong))
        assert SECRET not in str(caught.value)
    assert 1 == broker.admitted


def test_a_broker_that_does_not_know_the_password_is_refused(sasl_broker: Callable[..., SaslBroker]) -> None:
    """SCRAM works both ways: who cannot prove that he knows our password is not talked to."""
    broker = sasl_broker("SCRAM-SHA-256", proves=False)
    with pytest.raises(ConfigError, match="SCRAM-SHA-256 failed: Server sent wrong signature"):
        _try(broker.bootstrap, None, _sasl("SCRAM-SHA-256"))


def test_a_token_is_right_or_wrong(sasl_broker: Callable[..., SaslBroker], tmp_path: Path) -> None:
    """The token of a file, as it is at the time; a file that is gone says so."""
    broker, file = sasl_broker("OAUTHBEARER", secret="token-1"), tmp_path / "token"
    sasl = SaslConfig(mechanism="OAUTHBEARER", token_file=file)
    file.write_text("token-1")
    _try(broker.bootstrap, None, sasl)
    broker.secret = "token-2"
    with pytest.raises(ConfigError, match="refuses our credentials"):
        _try(broker.bootstrap, None, sasl)
    file.write_text("token-2")
    _try(broker.bootstrap, None, sasl)
    file.unlink()
    with pytest.raises(ConfigError, match=r"sasl\.token_file: .* cannot be read"):
        _try(broker.bootstrap, None, sasl)


def test_a_client_swallows_what_the_preflight_says(sasl_broker: Callable[..., SaslBroker]) -> None:
    """The reason that there is a preflight: to kafka-python a wrong password is a broker that is not there."""
    broker = sasl_broker("PLAIN")
    options = client_options(None, _sasl("PLAIN", password=SECRET))
    with pytest.raises(errors.KafkaTimeoutError) as caught:
        KafkaConsumer(bootstrap_servers=broker.bootstrap, bootstrap_timeout_ms=500, **options)
    assert refused(caught.value) is None
    with pytest.raises(ConfigError, match="refuses our credentials"):
        preflight([broker.bootstrap], options, SECONDS)


def test_nobody_there_is_an_outage(tansu: Tansu) -> None:
    """Each server is named with its reason; one that answers is enough; one that is silent is waited for in bounds."""
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.create_server(("127.0.0.1", 0)) as closed:
        nobody, mute = (f"127.0.0.1:{one.getsockname()[1]}" for one in (closed, silent))
        closed.close()
        options = client_options(None, None)
        with pytest.raises(UnavailableError, match=f"{nobody}: Connection refused; {mute}: no answer") as caught:
            preflight([nobody, mute], options, 0.5, dependency="kafka:cms")
        assert "kafka:cms" == caught.value.dependency
        preflight([nobody, tansu.bootstrap], options, SECONDS)


def test_no_secret_gets_into_the_log(
    sasl_broker: Callable[..., SaslBroker], noida: Noida, caplog: pytest.LogCaptureFixture
) -> None:
    """At debug level, with everything of kafka-python shown, neither a password nor what is derived from it is."""
    caplog.set_level(logging.DEBUG)
    options = client_options(None, _sasl("PLAIN", password=SECRET))
    KafkaAdminClient(bootstrap_servers=noida.bootstrap, **options).close()
    KafkaConsumer(bootstrap_servers=noida.bootstrap, **options).close()
    for mechanism in MECHANISMS:
        broker = sasl_broker(mechanism, secret=SECRET)
        _try(broker.bootstrap, None, _sasl(mechanism, password=SECRET))
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert "ApiVersionsRequest" in said, "nothing was logged at all"
    assert SECRET not in said
    assert ",p=" not in said, "a proof of the password is shown"
