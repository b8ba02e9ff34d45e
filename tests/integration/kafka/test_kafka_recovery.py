"""The records that made the versions which documents have are read again from their topics."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest
from tests.integration.kafka.conftest import Rig, records

from ingestd.errors import UnavailableError
from ingestd.model import EXPLICIT, Version

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures.brokers import Tansu

pytestmark = pytest.mark.kafka


@pytest.mark.parametrize("broker", ["tansu", "noida"])
def test_a_version_says_where_its_record_is(request: pytest.FixtureRequest, broker: str) -> None:
    """Each comes back as it was, whatever partition it is in; what was never there, or has no place, is left out."""
    rig: Rig = request.getfixturevalue(f"on_{broker}")
    rig.make(partitions=2)
    rig.produce(*records(5, partition=0), *records(5, partition=1, start=5), *records(1, partition=1, start=2))
    engine = rig.once()
    versions = {event.key.document_id: event.version for event in engine.events}
    latest = {document: version for document, version in versions.items() if version is not None}
    assert len({version.domain for version in latest.values()}) == 2
    places = {event.position: event for event in engine.events}
    again = list(engine.source.again(latest))
    assert {one.document_id for one in again} == latest.keys()
    for one in again:
        event = places[one.position]
        assert (one.document_id, one.record) == (event.key.document_id, event.record)
        assert latest[one.document_id] == event.version
    (domain,) = {version.domain for document, version in latest.items() if document == "d0"}
    nowhere = {
        "beyond": Version(99, domain),
        "before": Version(-5, domain),
        "explicit": Version(0, EXPLICIT),
        "elsewhere": Version(0, f"{domain}#1"),
    }
    assert list(engine.source.again(nowhere)) == []


def test_brokers_that_do_not_answer_say_nothing_of_records(own_tansu: Tansu, tmp_path: Path) -> None:
    """That is no word on whether the record is there."""
    rig = Rig(own_tansu.bootstrap, tmp_path)
    rig.make()
    rig.produce(*records(1))
    engine = rig.once()
    version = engine.events[0].version
    assert version is not None
    assert [one.document_id for one in engine.source.again({"d0": version})] == ["d0"]
    own_tansu.send(signal.SIGSTOP)
    with pytest.raises(UnavailableError, match="cannot be read again"):
        list(engine.source.again({"d0": version}))
