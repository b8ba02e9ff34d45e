"""Documents that a record only points to: what may be read, from where, and how what goes wrong is judged."""

from __future__ import annotations

import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError
from tests.fixtures.daemon import wait_for

from ingestd.engine.breaker import Backoff, Breakers
from ingestd.errors import DocumentError, Suspect, UnavailableError
from ingestd.model import Content, Record, canonical_json
from ingestd.sources._values import uris
from ingestd.sources._values.config import JsonFormat, decoder
from ingestd.sources._values.decoded import UnreadableError, ValueLimits
from ingestd.sources._values.uris import address

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ingestd.model import Payload

BODY = b"<p>body"
LIMITS = ValueLimits(max_value_bytes=1024, max_bytes=1000)


class Pages(BaseHTTPRequestHandler):
    """Answers with the status that the path names, in the way that it names."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer."""
        server: Any = self.server
        server.asked.append(self.path)
        how = self.path.removeprefix("/docs/")
        if how.isdigit():
            self._answer(int(how), b"", {"Retry-After": server.wait, "Location": "/docs/page.html"})
        elif how == "slow-head":
            self._drip_head()
        elif how == "large":
            self._answer(200, b"x" * 1001, {})
        elif how == "large-unsaid":
            self.send_response(200)
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(b"x" * 1001)
            self.close_connection = True
        elif how == "short":
            self.send_response(200)
            self.send_header("Content-Length", "50")
            self.end_headers()
            self.wfile.write(b"x")
            self.close_connection = True
        elif how == "packed":
            self._answer(200, b"\x1f\x8b", {"Content-Encoding": "gzip"})
        elif how == "drip":
            self._drip()
        elif how == "rude":
            self.wfile.write(b"SSH-2.0-OpenSSH\r\n\r\n")
            self.close_connection = True
        else:
            self._answer(200, BODY, {"Content-Type": "text/html"})

    def do_HEAD(self) -> None:
        """Answer a probe."""
        server: Any = self.server
        server.asked.append(f"HEAD {self.path}")
        if server.status is None:
            self._drip_head()
        else:
            self._answer(server.status, b"", {})

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Say nothing."""

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _drip_head(self) -> None:
        server: Any = self.server
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        for number in range(90):
            if server.over.wait(0.05):
                return
            try:
                self.wfile.write(b"X-%d: 1\r\n" % number)
            except OSError:
                return

    def _drip(self) -> None:
        server: Any = self.server
        self.send_response(200)
        self.send_header("Content-Length", "900")
        self.end_headers()
        for _ in range(900):
            if server.over.wait(0.05):
                return
            try:
                self.wfile.write(b"x")
            except OSError:
                return


@pytest.fixture
def pages() -> Iterator[Any]:
    """Serve pages; ``asked`` has the paths that were asked for."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    server.asked, server.over, server.status, server.wait = [], threading.Event(), 200, "7"
    server.url = f"http://127.0.0.1:{server.server_address[1]}/docs/"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.over.set()
    server.shutdown()
    thread.join()
    server.server_close()


def payload(uri: str, *allowed: str, **said: object) -> Payload:
    """Return the payload of a document at an address."""
    record = Record("t", 0, 1, 0, b"a", canonical_json({"uri": uri, **said}))
    found = decoder(JsonFormat(uris=allowed), id_from="auto", source="cms", limits=LIMITS).decode(record)
    assert (found.document_id, found.size) == ("a", 0)
    assert found.payload is not None
    assert found.payload.at_hand is None
    return found.payload


def test_a_page(pages: Any) -> None:
    """The server's type counts where the event gives none, the address gives the name; asked when it is read."""
    reads = payload(f"{pages.url}a/page%20one.html?v=1", pages.url, title="T", metadata={"m": 1})
    assert pages.asked == []
    assert reads.read() == Content(BODY, "page one.html", "text/html", "T", {"m": 1})
    assert pages.asked == ["/docs/a/page%20one.html?v=1"]
    assert payload(f"{pages.url}x", pages.url, content_type="text/plain").read().content_type == "text/plain"


@pytest.mark.parametrize("status", [404, 410, 400, 401, 403, 204, 301, 302, 307])
def test_statuses_that_will_not_pass(pages: Any, status: int) -> None:
    """The document is bad; a redirect is not followed, for it leads wherever it likes."""
    with pytest.raises(DocumentError, match=str(status)):
        payload(f"{pages.url}{status}", pages.url).read()
    assert len(pages.asked) == 1


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503])
def test_statuses_that_may_pass(pages: Any, status: int) -> None:
    """The server is not well: nothing is said of the document; it is asked again after the time that it asks for."""
    with pytest.raises(UnavailableError, match=str(status)) as caught:
        payload(f"{pages.url}{status}", pages.url).read()
    assert (caught.value.wait, caught.value.refused) == (7, False)
    assert caught.value.dependency == f"uri:127.0.0.1:{pages.server_address[1]}"


def test_one_address_that_always_refuses_does_not_hold_the_others(pages: Any) -> None:
    """Whatever it asks us to wait: its server answers a probe. While that refuses too, the read is held."""
    breakers = Breakers(backoff=Backoff(first=0.001, most=0.001, pace=0.0))
    pages.wait = "0"
    reads: Any = payload(f"{pages.url}503", pages.url)
    with pytest.raises(Suspect, match="503"):
        breakers.hold(reads.read, reads.probe, beat=lambda: None, scope="articles")
    assert breakers.passes("articles")
    pages.status = 503
    held = threading.Thread(target=_held, args=(breakers, reads), daemon=True)
    held.start()
    wait_for(lambda: not breakers.passes("articles") and len(pages.asked) > 100, "it is held")
    assert held.is_alive()
    pages.status = 200
    held.join(10)
    assert not held.is_alive()


def _held(breakers: Breakers, reads: Any) -> None:
    with pytest.raises(Suspect):
        breakers.hold(reads.read, reads.probe, beat=lambda: None, scope="articles")


@pytest.mark.parametrize("how", ["short", "rude"])
def test_broken_answers_may_pass(pages: Any, how: str) -> None:
    """A connection that ends early, or no HTTP."""
    with pytest.raises(UnavailableError, match=r"^a: "):
        payload(f"{pages.url}{how}", pages.url).read()


def test_a_server_is_probed_with_what_it_answered_well(pages: Any) -> None:
    """One that serves its root from elsewhere would seem well; before any good answer the root has to do."""
    reads: Any = payload(f"{pages.url}a", pages.url)
    reads.probe()
    assert pages.asked == ["HEAD /"]
    pages.status = 500  # a root that nobody made
    reads.probe()
    for pages.status in (429, 502, 503, 504):
        with pytest.raises(UnavailableError, match=str(pages.status)):
            reads.probe()
    pages.status = 200
    pages.asked[1:] = []
    reads.read()
    reads.probe()
    assert pages.asked[1:] == ["/docs/a", "HEAD /docs/a"]
    for pages.status in (500, 502):
        with pytest.raises(UnavailableError, match=f"answers {pages.status}"):
            reads.probe()
    pages.status = 501  # it has no such method, and is there
    reads.probe()


def test_nobody_there(pages: Any) -> None:
    """A server that is down comes back."""
    reads: Any = payload(f"{pages.url}x", pages.url)
    pages.shutdown()
    pages.server_close()
    with pytest.raises(UnavailableError, match=r"^a: "):
        reads.read()
    with pytest.raises(UnavailableError):
        reads.probe()


@pytest.mark.parametrize("how", ["large", "large-unsaid"])
def test_too_large(pages: Any, how: str) -> None:
    """Whether the server says so before or not."""
    with pytest.raises(DocumentError, match="more than 1000 bytes; the most is 1000"):
        payload(f"{pages.url}{how}", pages.url).read()


def test_compressed_unasked(pages: Any) -> None:
    """What unpacks without bound is not unpacked."""
    with pytest.raises(DocumentError, match="compressed"):
        payload(f"{pages.url}packed", pages.url).read()


def test_a_drip(pages: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that sends a byte now and then does not hold a thread."""
    monkeypatch.setattr(uris, "TOTAL_SECONDS", 0.3)
    with pytest.raises(UnavailableError, match="takes too long"):
        payload(f"{pages.url}drip", pages.url).read()


def test_a_head_that_drips(pages: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does one whose headers come so, and a probe's are bounded too."""
    monkeypatch.setattr(uris, "TOTAL_SECONDS", 0.3)
    reads: Any = payload(f"{pages.url}slow-head", pages.url)
    pages.status = None
    for ask in (reads.read, reads.probe):
        began = time.monotonic()
        with pytest.raises(UnavailableError):
            ask()
        assert time.monotonic() - began < 2, "a head takes 4.5 s here"


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("https://cms.example.org/a", None),
        ("https://CMS.example.org/a", None),
        ("https://cms.example.org:443/a?q=../..", None),
        ("https://cms.example.org/a%20b/%C3%BC;v=1", None),
        ("https://cms.example.org/docs", "below nothing"),
        ("https://other.example.org/docs/only/", None),
        ("https://other.example.org/docs/only/x", None),
        ("https://cms.example.org/a/b", None),
        ("https://cms.example.org/ab", "below nothing"),
        ("https://other.example.org/docs/only", "below nothing"),
        ("https://other.example.org/docs/only2", "below nothing"),
        ("https://other.example.org/docs/", "below nothing"),
        ("http://cms.example.org/a", "below nothing"),
        ("https://cms.example.org:444/a", "below nothing"),
        ("https://cms.example.org.evil.org/a", "below nothing"),
        ("https://cms.example.org./a", "below nothing"),
        ("https://user@cms.example.org/a", "without user"),
        ("https://cms.example.org@evil.org/a", "without user"),
        ("https://cms.example.org\\@evil.org/a", "characters"),
        ("https://cms.example.org/a#b", "fragment"),
        ("https://other.example.org/docs/only/../x", "'..'"),
        ("https://other.example.org/docs/only/./x", "'..'"),
        ("https://other.example.org/docs/only/%2e%2e/x", "'..'"),
        ("https://other.example.org/docs/only/.%2E/x", "'..'"),
        ("https://other.example.org/docs/only/%252e%252e/x", "'..'"),
        ("https://other.example.org/docs/only/%25252e./x", "'..'"),
        ("https://other.example.org/docs/only/..;a=b/x", "'..'"),
        ("https://other.example.org/docs/only/..%2fx", "encoded slash"),
        ("https://other.example.org/docs/only/..%252fx", "encoded slash"),
        ("https://other.example.org/docs/only/..%5cx", "backslash"),
        ("https://other.example.org/docs/only/%00", "control"),
        ("https://other.example.org/docs/only/a b", "characters"),
        ("https://other.example.org/docs/only/ü", "characters"),
        ("https://other.example.org/docs/only/a\n", "characters"),
        ("https:///a", "no host"),
        ("https://cms.example.org:99999/a", "no such port"),
        ("ftp://cms.example.org/a", "only http"),
        ("//cms.example.org/a", "only http"),
        ("cms.example.org/a", "only http"),
        ("", "only http"),
        ("file:///etc/passwd", "below nothing"),
        ("file://cms.example.org/etc/passwd", "no host"),
        ("file:///srv/documents?x", "neither port nor query"),
        ("file:/etc/passwd", "only http"),
    ],
)
def test_which_addresses_are_allowed(uri: str, why: str | None) -> None:
    """What is below a prefix, with nothing in it that somebody could read in another way."""
    allowed = (
        "https://cms.example.org/a",
        "https://cms.example.org/a%20b",
        "https://other.example.org/docs/only/",
        "file:///srv/documents/",
    )
    if why is None:
        assert payload(uri, *allowed)
        return
    with pytest.raises(UnreadableError, match=why) as caught:
        payload(uri, *allowed)
    assert caught.value.document_id == "a"


def test_nothing_is_allowed_unless_configured() -> None:
    """And the message names the option."""
    with pytest.raises(UnreadableError, match="`uris`"):
        payload("https://cms.example.org/a")


@pytest.mark.parametrize(
    "prefix", ["https://a/?q", "ftp://a/", "https://a/../b", "https://u:p@a/", "/srv", "file://h/x"]
)
def test_prefixes_are_checked(prefix: str) -> None:
    """A prefix that no address can be below is a fault of the configuration."""
    with pytest.raises(ValidationError):
        JsonFormat(uris=(prefix,))


def test_parts_of_an_address() -> None:
    """IPv6 hosts, default ports and empty paths."""
    assert address("http://[::1]")[:4] == ("http", "[::1]", 80, "/")
    assert address("HTTPS://A:8443/x?y").url == "https://a:8443/x?y"


def descriptors() -> int:
    """Return the number of open descriptors."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def file_payload(path: Path, allowed: Path) -> Payload:
    """Return the payload of a file."""
    return payload(f"file://{path}", f"file://{allowed}/")


def test_a_file(tmp_path: Path) -> None:
    """Its name is the address's, its bytes are what they are when it is read."""
    (tmp_path / "a b.md").write_bytes(b"before")
    reads = payload(f"file://{tmp_path}/a%20b.md", f"file://{tmp_path}/", content_type="text/markdown")
    (tmp_path / "a b.md").write_bytes(b"after")
    assert reads.read() == Content(b"after", "a b.md", "text/markdown")


def test_files_that_are_refused(tmp_path: Path) -> None:
    """Symlinks, directories, FIFOs, what is not there, what is too large, and what leads outside on the way."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (outside / "secret").write_text("x")
    (root / "link").symlink_to(outside / "secret")
    (root / "way").symlink_to(outside)
    (root / "dir").mkdir()
    os.mkfifo(root / "fifo")
    (root / "large").write_bytes(b"x" * 1001)
    before = descriptors()
    for name, why in (
        ("link", "no regular file"),
        ("way/secret", "outside of what"),
        ("dir", "no regular file"),
        ("fifo", "no regular file"),
        ("none", "cannot be read: No such file"),
        ("large", "1001 bytes; the most is 1000"),
    ):
        with pytest.raises(DocumentError, match=f"^a.*{why}"):
            file_payload(root / name, root).read()
    assert descriptors() == before


def test_a_prefix_behind_a_symlink(tmp_path: Path) -> None:
    """The operator may call the folder by another name."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real/a").write_text("x")
    (tmp_path / "name").symlink_to("real")
    assert file_payload(tmp_path / "name/a", tmp_path / "name").read().data == b"x"
