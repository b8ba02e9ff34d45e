"""The health server, over real sockets."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import threading
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry, Counter
from structlog.testing import capture_logs

from ingestd.errors import ConfigError
from ingestd.model import Check, Json, Totals
from ingestd.ops._page import duration, render
from ingestd.ops.http import HealthServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

GOOD = Check("stages", ok=True, detail="all beat")
BAD = Check("milvus", ok=False, detail="<b>refused</b> & gone", cure='start it: "systemctl start milvus"')


class Patient:
    """A daemon whose health a test decides."""

    def __init__(self) -> None:
        self.lives: Sequence[Check] = [GOOD]
        self.readies: Sequence[Check] = [GOOD]
        self.ask: Callable[[], None] = lambda: None

    def live(self) -> Sequence[Check]:
        """Return what the test said."""
        self.ask()
        return self.lives

    def ready(self) -> Sequence[Check]:
        """Return what the test said."""
        self.ask()
        return self.readies

    def started(self) -> Sequence[Check]:
        """Return that all is well."""
        return [GOOD]

    def totals(self) -> Totals:
        """Return recognisable numbers."""
        return Totals(accepted=12345, written=12000, dead_lettered=345)

    def overview(self) -> Mapping[str, Json]:
        """Return one table, one line, and a name that is hard to print."""
        return {
            "version": "9.9.9",
            "uptime_seconds": 93784.0,
            "sources": [{"name": "in\udcffbox<script>", "type": "folder", "files": 1400, "scan_age_seconds": 12.34}],
            "collections": [],
        }


@pytest.fixture
def patient() -> Patient:
    """A healthy daemon."""
    return Patient()


@pytest.fixture
def server(patient: Patient) -> Iterator[HealthServer]:
    """A running server on a port that the kernel chose."""
    registry = CollectorRegistry()
    Counter("ingestd_example_total", "An example.", registry=registry).inc()
    server = HealthServer("127.0.0.1:0", patient, registry)
    server.start()
    try:
        yield server
    finally:
        server.close()


def ask(
    server: HealthServer, path: str, method: str = "GET", headers: Mapping[str, str] | None = None
) -> tuple[int, http.client.HTTPMessage, str]:
    """Send one request; return status, headers and body."""
    connection = http.client.HTTPConnection(server.address, timeout=10)
    with contextlib.closing(connection):
        connection.request(method, path, headers=dict(headers or {}))
        response = connection.getresponse()
        return response.status, response.headers, response.read().decode()


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/startupz"])
def test_a_probe_answers_a_line_for_each_check(server: HealthServer, path: str) -> None:
    """A healthy daemon answers 200, with each check, its detail and its cure."""
    status, headers, body = ask(server, path)
    assert (200, "application/json") == (status, headers["Content-Type"])
    assert json.loads(body) == {
        "ok": True,
        "checks": [{"name": "stages", "ok": True, "detail": "all beat", "cure": ""}],
    }


def test_not_ready_is_503_with_its_cure_and_does_not_mean_dead(server: HealthServer, patient: Patient) -> None:
    """One check that fails makes ``/readyz`` 503; ``/livez`` has its own answer."""
    patient.readies = [GOOD, BAD]
    status, _, body = ask(server, "/readyz")
    assert status == 503
    assert json.loads(body)["ok"] is False
    assert json.loads(body)["checks"][1]["cure"] == BAD.cure
    assert ask(server, "/livez")[0] == 200


@pytest.mark.parametrize(("path", "status"), [("/readyz", 503), ("/", 500), ("/livez", 503)])
def test_a_check_that_breaks_is_answered_and_logged(
    server: HealthServer, patient: Patient, path: str, status: int
) -> None:
    """An exception in a check never looks healthy, never hangs, and leaves a line with its traceback."""

    def broken() -> None:
        raise RuntimeError("the check itself is broken")

    patient.ask = broken
    with capture_logs() as logs:
        answered, _, body = ask(server, path)
    assert status == answered
    assert "RuntimeError" not in body  # what went wrong inside is for the log
    assert [("a health request failed", path)] == [(line["event"], line["path"]) for line in logs]


def test_a_probe_that_hangs_leaves_the_others_answering(server: HealthServer, patient: Patient) -> None:
    """One request that waits for a lock does not keep metrics and other probes from answering."""
    entered, release = threading.Event(), threading.Event()

    def hang() -> None:
        entered.set()
        release.wait(30)

    patient.ask = hang
    stuck = threading.Thread(target=ask, args=(server, "/readyz"))
    stuck.start()
    try:
        assert entered.wait(10)
        assert ask(server, "/metrics")[0] == 200
        assert ask(server, "/startupz")[0] == 200
    finally:
        release.set()
        stuck.join(10)


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [("*/*", "text/plain"), ("application/openmetrics-text;version=1.0.0", "application/openmetrics-text")],
)
def test_metrics_are_exposed_in_the_format_that_is_asked_for(
    server: HealthServer, accept: str, content_type: str
) -> None:
    """``/metrics`` shows the registry that was given, as text or as OpenMetrics."""
    status, headers, body = ask(server, "/metrics", headers={"Accept": accept})
    assert status == 200
    assert headers["Content-Type"].startswith(content_type)
    assert "ingestd_example_total 1.0" in body


class Outline(HTMLParser):
    """Collects what a browser would make of the page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element and its attributes."""
        self.tags.append(tag)
        self.attributes.extend((name, value or "") for name, value in attrs)

    def handle_data(self, data: str) -> None:
        """Gather the text."""
        self.text += data


def test_the_page_says_first_what_is_not_well(server: HealthServer, patient: Patient) -> None:
    """The page begins with each check that fails and its cure, then totals, sources and collections."""
    patient.readies = [GOOD, BAD]
    status, _, body = ask(server, "/")
    outline = Outline()
    outline.feed(body)
    assert status == 200
    wanted = (
        "1 not well",
        BAD.detail,
        BAD.cure,
        "12,345",
        "Sources",
        "1,400",
        "12.3 s",
        "Collections",
        "9.9.9",
        "1 d 2 h",
    )
    positions = [outline.text.find(part) for part in wanted]
    assert -1 not in positions
    assert positions == sorted(positions)
    assert "All is well" not in outline.text


def test_the_page_is_escaped_self_contained_and_locked_down(server: HealthServer, patient: Patient) -> None:
    """No markup from outside, no script, nothing loaded from elsewhere, and headers that forbid both."""
    patient.readies = [BAD]
    _, headers, body = ask(server, "/")
    outline = Outline()
    outline.feed(body)
    assert not {"script", "b", "img", "link", "iframe"} & set(outline.tags)
    assert all(value.startswith("/") for name, value in outline.attributes if name in {"href", "src"})
    assert "in\\udcffbox<script>" in outline.text
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; style-src 'unsafe-inline'")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert ("http-equiv", "refresh") in outline.attributes


def test_a_healthy_page_says_so(server: HealthServer) -> None:
    """With nothing wrong, the page says that all is well."""
    assert "All is well." in ask(server, "/")[2]


@pytest.mark.parametrize("path", ["/", "/livez", "/metrics"])
def test_head_answers_like_get_without_the_body(server: HealthServer, path: str) -> None:
    """HEAD has the status and the length of GET, and no body."""
    status, headers, body = ask(server, path, "HEAD")
    assert (200, "") == (status, body)
    assert int(headers["Content-Length"]) > 0


def test_unknown_paths_and_methods_are_refused(server: HealthServer) -> None:
    """What is not there is 404 and names what is; what would write is 405 and says what is allowed."""
    status, _, body = ask(server, "/healthz")
    assert status == 404
    assert "/livez" in body
    status, headers, _ = ask(server, "/readyz", "POST")
    assert (405, "GET, HEAD") == (status, headers["Allow"])
    assert ask(server, "/../etc/passwd")[0] == 404


def test_a_port_that_is_taken_is_a_config_error_with_the_cure(server: HealthServer, patient: Patient) -> None:
    """The message names the key, the address and a way out, before anything else has started."""
    with pytest.raises(ConfigError, match=r"http\.listen: something listens on .*INGESTD_HTTP__LISTEN"):
        HealthServer(server.address, patient, CollectorRegistry())


@pytest.mark.parametrize(
    "listen", ["8321", "127.0.0.1", "127.0.0.1:http", ":8321", "::1:8321", "127.0.0.1:70000", "[127.0.0.1]:1"]
)
def test_a_malformed_address_is_a_config_error(patient: Patient, listen: str) -> None:
    """What is no HOST:PORT is refused with an example."""
    with pytest.raises(ConfigError, match=r"http\.listen: .*for example"):
        HealthServer(listen, patient, CollectorRegistry())


@pytest.mark.parametrize("listen", ["203.0.113.7:0", "no such host:0"])
def test_an_address_of_another_machine_is_a_config_error(patient: Patient, listen: str) -> None:
    """An address or a name that is not this machine's is refused."""
    with pytest.raises(ConfigError, match=r"http\.listen: .* is no address of this machine"):
        HealthServer(listen, patient, CollectorRegistry())


def test_ipv6_works(patient: Patient) -> None:
    """An address in brackets is listened on, and comes back in brackets."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    server = HealthServer("[::1]:0", patient, CollectorRegistry())
    server.start()
    try:
        assert re.fullmatch(r"\[::1\]:[1-9]\d*", server.address)
        assert ask(server, "/livez")[0] == 200
    finally:
        server.close()


def test_closing_frees_the_port_and_every_thread(patient: Patient) -> None:
    """After ``close`` the same port can be taken again and no thread of the server is left."""
    before = set(threading.enumerate())
    server = HealthServer("127.0.0.1:0", patient, CollectorRegistry())
    server.start()
    alive = [server.alive]
    assert ask(server, "/livez")[0] == 200
    server.close()
    server.close()
    assert [*alive, server.alive] == [True, False]
    again = HealthServer(server.address, patient, CollectorRegistry())
    again.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
    assert before >= set(threading.enumerate())


def test_a_request_in_progress_is_answered_before_the_end(server: HealthServer, patient: Patient) -> None:
    """``close`` waits for a request that is worked on, and its answer arrives."""
    entered, answers = threading.Event(), list[int]()
    release = threading.Event()

    def wait() -> None:
        entered.set()
        release.wait(30)

    patient.ask = wait
    asking = threading.Thread(target=lambda: answers.append(ask(server, "/readyz")[0]))
    asking.start()
    assert entered.wait(10)
    closing = threading.Thread(target=server.close)
    closing.start()
    closing.join(0.5)  # what must not happen has no condition to wait for
    ended_early = not closing.is_alive()
    release.set()
    closing.join(10)
    asking.join(10)
    assert (ended_early, answers) == (False, [200])


def test_an_idle_client_does_not_keep_the_server(server: HealthServer) -> None:
    """A connection that never sends a request does not delay the end."""
    host, port = server.address.split(":")
    with socket.create_connection((host, int(port))):
        closing = threading.Thread(target=server.close)
        closing.start()
        closing.join(5)
        assert not closing.is_alive()


@pytest.mark.parametrize("count", [100, 200])
def test_half_open_requests_do_not_keep_probes_out(server: HealthServer, count: int) -> None:
    """With a hundred clients that never finish a request a probe is answered; with more than there is room for, too."""
    host, port = server.address.split(":")
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            client = stack.enter_context(socket.create_connection((host, int(port))))
            client.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n")
        assert ask(server, "/livez")[0] == 200


def test_a_client_that_is_silent_is_dropped(server: HealthServer) -> None:
    """Half a request, or none at all, does not hold a connection."""
    host, port = server.address.split(":")
    with (
        socket.create_connection((host, int(port)), timeout=15) as silent,
        socket.create_connection((host, int(port)), timeout=15) as halfway,
    ):
        halfway.sendall(b"GET /livez HTTP/1.1\r\n")
        assert (b"", b"") == (silent.recv(1), halfway.recv(1))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.84, "0.8 s"), (59.0, "59.0 s"), (302, "5 min 2 s"), (7260, "2 h 1 min"), (273600, "3 d 4 h")],
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    """A duration has its two largest units."""
    assert text == duration(seconds)


def test_dead_letters_are_not_passed_over() -> None:
    """All is well with the daemon, and somebody still has to look at what failed for good."""
    page = render([], Totals(), {"sources": [{"name": "inbox", "dead_letters": 3}, {"name": "old", "dead_letters": 1}]})
    assert "All is well; 4 dead letters wait: <code>ingestd dead-letters list</code>." in page
    assert "All is well." in render([], Totals(), {"sources": [{"name": "inbox", "dead_letters": 0}]})
