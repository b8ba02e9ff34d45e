"""The catalogue of metrics: what is exported can be read, and says what it means."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from prometheus_client import Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from ingestd.metrics import Metrics
from ingestd.model import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator

EXPORTED_BY_THE_LIBRARY = ("process_", "python_gc_")
FORBIDDEN_LABELS = {"path", "file", "document", "document_id", "id", "key", "message", "topic", "partition"}


def instruments(metrics: Metrics) -> Iterator[tuple[str, Counter | Gauge | Histogram]]:
    """Yield every metric of the catalogue with the dotted name that code knows it by."""
    for group_name, group in vars(metrics).items():
        for name, instrument in getattr(group, "__dict__", {}).items():
            if isinstance(instrument, Counter | Gauge | Histogram):
                yield f"{group_name}.{name}", instrument


def touched() -> Metrics:
    """Return a catalogue in which every metric has a sample, so that the exposition shows all of them."""
    metrics = Metrics("1.2.3")
    for _, instrument in instruments(metrics):
        labels = instrument._labelnames
        child = instrument.labels(**dict.fromkeys(labels, "x")) if labels else instrument
        if isinstance(child, Counter):
            child.inc()
        elif isinstance(child, Gauge):
            child.set(1)
        else:
            child.observe(0.5)
    return metrics


def test_promtool_finds_nothing_to_complain_about() -> None:
    """Prometheus' own linter accepts the whole exposition: names, units, suffixes, help texts."""
    promtool = shutil.which("promtool")
    if promtool is None:
        if os.environ.get("CI"):
            pytest.fail("promtool is missing: .ci/run installs it with Debian's package prometheus")
        pytest.skip("promtool is not installed (Debian: apt install prometheus)")
    exposition = generate_latest(touched().registry)
    linted = subprocess.run([promtool, "check", "metrics"], input=exposition, capture_output=True, check=False)
    assert (0, b"", b"") == (linted.returncode, linted.stdout, linted.stderr)


def test_every_metric_is_named_explained_and_bounded() -> None:
    """Each metric carries the prefix, a help text of a sentence, and no label that grows with what is ingested."""
    found = dict(instruments(Metrics("1.2.3")))
    assert found
    for name, instrument in found.items():
        described = next(iter(instrument.describe()))
        assert described.name.startswith("ingestd_"), name
        assert re.fullmatch(r"[A-Z0-9].{10,}\.", described.documentation), name
        assert not FORBIDDEN_LABELS & set(instrument._labelnames), name


def test_nothing_but_the_catalogue_and_the_process_is_exported() -> None:
    """A scrape holds what is declared here and the figures of the process, each with a help text."""
    families = list(text_string_to_metric_families(generate_latest(touched().registry).decode()))
    for family in families:
        assert family.name.startswith(("ingestd_", *EXPORTED_BY_THE_LIBRARY)), family.name
        assert family.documentation, family.name
    assert {"ingestd_build_info", "process_resident_memory_bytes"} <= {family.name for family in families}


def test_two_catalogues_count_apart() -> None:
    """Nothing is global: a second daemon in the same process starts at zero."""
    first, second = Metrics("1"), Metrics("1")
    first.accepted("inbox", 3)
    first.settled("inbox", Verdict.WRITTEN, 2)
    assert 3.0 == first.registry.get_sample_value("ingestd_events_accepted_total", {"source": "inbox"})
    assert 2.0 == first.registry.get_sample_value(
        "ingestd_events_settled_total", {"source": "inbox", "verdict": "written"}
    )
    assert second.registry.get_sample_value("ingestd_events_accepted_total", {"source": "inbox"}) is None
