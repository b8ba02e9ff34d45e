"""Bad files: each gets a dead letter or a wait, with its reason, and every other file goes on."""

from __future__ import annotations

import base64
import os
import socket
import sqlite3
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from tests.fixtures.daemon import wait_for

if TYPE_CHECKING:
    from tests.fixtures.daemon import Daemon, Workplace

GOOD = 20
WESTERN = "An English text that has a pound sign and a café in it: £5 for a café crème."
MARKUP = "<html><head><script>let text = 1</script></head><body><p> </p></body></html>"
LETTERS = {
    ("inbox/binary.bin", "extract"),
    ("inbox/picture.png", "extract"),
    ("inbox/report.pdf", "extract"),
    ("inbox/no-text.txt", "extract"),
    ("inbox/nested.json", "extract"),
    ("inbox/huge.txt", "extract"),
    ("inbox/secret.txt", "extract"),
    ("inbox/described.txt", "extract"),
    ("inbox/long.txt", "chunk"),
    ("inbox/poison.txt", "embed"),
}


@pytest.fixture
def bad(workplace: Workplace) -> Workplace:
    """A workplace with one file of each kind of trouble among good ones."""
    workplace.configure("limits.max_chunks", 20)
    workplace.configure("embedders.hash.type", "tests.fixtures.poison_embedder")
    workplace.know_the_tests_plug_ins()
    if os.geteuid() == 0:  # root may read everything, unless it gives that up
        workplace.prefix = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
    for number in range(GOOD):
        workplace.write(f"good-{number}.txt", f"A good text, number {number}.")
    workplace.write("binary.bin", bytes(range(256)) * 40)
    workplace.write("picture.png", b"\x89PNG\r\n\x1a\n" + bytes(100))
    workplace.write("report.pdf", b"%PDF-1.7\n" + b"x" * 100)
    workplace.write("no-text.txt", b"half a text\0\0\0")
    workplace.write("nested.json", "[" * 100_000)
    os.truncate(workplace.write("huge.txt", "huge"), 100_000_000)
    workplace.write("secret.txt", "nobody may read this").chmod(0)
    workplace.write("described.txt", "A text with a bad sidecar.")
    workplace.write("described.txt.meta.json", '{"title": ')
    workplace.write("long.txt", "\n".join(f"Line {line} is one of very many lines." for line in range(2000)))
    workplace.write("poison.txt", "This is POISON to the model.")
    # No trouble at all, though it may look like some:
    workplace.write("empty.txt", "")
    workplace.write("empty.html", MARKUP)
    workplace.write("western.txt", WESTERN.encode("cp1252"))
    (workplace.inbox / os.fsdecode(b"caf\xe9.txt")).write_text("The name of this file is not UTF-8.")
    # None of these is a document:
    os.mkfifo(workplace.inbox / "pipe.txt")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(workplace.inbox / "socket.txt"))
    (workplace.inbox / "dangling.txt").symlink_to("nowhere.txt")
    (workplace.inbox / "elsewhere.txt").symlink_to("/etc/hostname")
    (workplace.inbox / "loop").symlink_to(".")
    return workplace


def _listed(letters: list[dict[str, Any]]) -> set[tuple[str, str]]:
    assert len({letter["document_id"] for letter in letters}) == len(letters), "a document has two letters"
    return {(letter["document_id"], letter["stage"]) for letter in letters}


def test_each_bad_file_has_its_letter_and_the_others_go_on(bad: Workplace) -> None:
    """Without a daemon: the letters, their originals, what a rescan adds (nothing), and what mends them."""
    totals = bad.once(code=3)
    fine = GOOD + 4
    assert (fine + len(LETTERS), fine, len(LETTERS)) == tuple(
        totals[name] for name in ("accepted", "written", "dead_lettered")
    )
    letters = bad.letters()
    assert LETTERS == _listed(letters)
    texts = {row.document_id: row.text for row in bad.rows()}
    assert texts.pop("inbox/western.txt") == WESTERN
    assert texts.pop("inbox/caf%E9.txt") == "The name of this file is not UTF-8."
    assert {f"inbox/good-{n}.txt": f"A good text, number {n}." for n in range(GOOD)} == texts

    by_name = {letter["document_id"].removeprefix("inbox/"): letter for letter in letters}
    assert "100000000 bytes" in by_name["huge.txt"]["message"]
    assert "max_chunks" in by_name["long.txt"]["message"]
    assert "Permission denied" in by_name["secret.txt"]["message"]
    assert "sidecar described.txt.meta.json" in by_name["described.txt"]["message"]
    shown = bad.ask("dead-letters", "show", str(by_name["no-text.txt"]["id"]), "--json").json
    assert base64.b64decode(shown["content"]) == b"half a text\0\0\0"
    assert by_name["no-text.txt"].items() <= shown.items()

    again = bad.once(code=3)
    assert (fine, len(LETTERS), 0) == tuple(again[name] for name in ("unchanged", "dead_lettered", "written"))
    assert bad.letters() == letters

    _mend(bad)
    bad.configure("limits.max_chunks", 20_000)
    left = {("inbox/picture.png", "extract"), ("inbox/report.pdf", "extract"), ("inbox/huge.txt", "extract")}
    mended = bad.once(code=3)
    assert (len(LETTERS) - 3, 3) == (mended["written"], mended["dead_lettered"])
    assert left == _listed(bad.letters())


def _mend(workplace: Workplace) -> None:
    """Make good files of most bad ones; the long one is left to a higher limit."""
    workplace.write("binary.bin", "Now this is a text.")
    workplace.write("no-text.txt", "Now this is a text, too.")
    workplace.write("nested.json", '["Now this is JSON."]')
    (workplace.inbox / "secret.txt").chmod(0o644)
    workplace.write("described.txt.meta.json", '{"title": "Now this is a title"}')
    workplace.write("poison.txt", "Now this is medicine.")


def test_letters_are_replayed_and_discarded_without_a_daemon(bad: Workplace) -> None:
    """A replay is carried out by the next run; what it cannot mend comes back as a letter. A dry run does nothing."""
    bad.once(code=3)
    letters = bad.letters()
    ids = {letter["document_id"]: letter["id"] for letter in letters}

    dry = bad.ask("dead-letters", "replay", "--all", "--dry-run", "--json")
    assert {"would_replay": sorted(ids.values())} == dry.json
    assert {"would_replay": [ids["inbox/long.txt"]]} == bad.ask(
        "dead-letters", "replay", "--stage", "chunk", "--dry-run", "--json"
    ).json
    assert letters == bad.letters()

    discarded = bad.ask("dead-letters", "discard", str(ids["inbox/report.pdf"]), "--json")
    assert {"discarded": 1, "on_topics": 0} == discarded.json
    assert {"replayed": 2, "left": []} == bad.ask(
        "dead-letters", "replay", str(ids["inbox/picture.png"]), str(ids["inbox/long.txt"]), "--json"
    ).json
    assert {"inbox/picture.png", "inbox/long.txt"} == {
        event["document_id"] for event in bad.ask("retries", "list", "--json").json
    }
    totals = bad.once(code=3)
    assert totals["retrying"] == 0
    assert LETTERS - {("inbox/report.pdf", "extract")} == _listed(bad.letters())
    assert bad.ask("dead-letters", "show", "999999").code == 2
    assert bad.ask("dead-letters", "replay").code == 2


def test_letters_are_chosen_by_age(bad: Workplace) -> None:
    """By the time of their last failure; a source that is none is refused."""
    bad.once(code=3)
    with closing(sqlite3.connect(bad.state / "ingestd.db")) as state:
        state.execute("UPDATE dead_letters SET last_failed_at = last_failed_at - 3600")
        state.commit()
    bad.write("late.png", b"\x89PNG\r\n\x1a\n" + bytes(100))
    bad.once(code=3)

    def listed(*filters: str) -> set[str]:
        return {letter["document_id"] for letter in bad.ask("dead-letters", "list", "--json", *filters).json}

    assert listed("--newer-than", "30m") == {"inbox/late.png"}
    assert bad.ask("dead-letters", "list", "--source", "nosuch").code == 2
    discarded = bad.ask("dead-letters", "discard", "--older-than", "30m", "--json")
    assert discarded.json["discarded"] == len(LETTERS)
    assert {letter["document_id"] for letter in bad.letters()} == {"inbox/late.png"}


def test_letters_are_replayed_discarded_and_mended_under_a_running_daemon(bad: Workplace) -> None:
    """The same over the control socket; and rescans add no second letter, neither do they wait for any."""
    bad.configure("sources.inbox.rescan_seconds", 0.3)
    bad.configure("sources.inbox.watch", "poll")
    count = GOOD + 4 + len(LETTERS)
    with bad.daemon() as daemon:
        daemon.until_ready()
        daemon.until_settled(count)
        letters = bad.letters()
        assert LETTERS == _listed(letters)
        for number in range(3):  # each is found by a scan of its own
            bad.write(f"later-{number}.txt", "A later text.")
            daemon.until_settled(count + number + 1)
        assert letters == bad.letters()
        assert daemon.get("/readyz")[0] == 200
        assert f" {len(letters)}" in daemon.get("/")[1]

        ids = {letter["document_id"]: letter["id"] for letter in letters}
        discarded = bad.ask("dead-letters", "discard", str(ids["inbox/report.pdf"]), "--json")
        assert {"discarded": 1, "on_topics": 0} == discarded.json
        assert {"replayed": 1, "left": []} == bad.ask(
            "dead-letters", "replay", str(ids["inbox/picture.png"]), "--json"
        ).json
        totals = daemon.until_settled(count + 4)
        assert totals["dead_lettered"] == len(LETTERS) + 1
        assert LETTERS - {("inbox/report.pdf", "extract")} == _listed(bad.letters())
        _mend(bad)
        left = {("inbox/picture.png", "extract"), ("inbox/huge.txt", "extract"), ("inbox/long.txt", "chunk")}
        wait_for(lambda: _listed(bad.letters()) == left, "the mended files' letters are gone")
        _adds_up(daemon)
        assert daemon.stop() == 0


def _adds_up(daemon: Daemon) -> None:
    totals = daemon.totals
    ends = ("written", "deleted", "unchanged", "superseded", "dead_lettered", "retrying", "in_flight")
    assert totals["accepted"] == sum(totals[name] for name in ends)


def test_a_file_that_is_being_written_is_waited_for(workplace: Workplace) -> None:
    """A writer that appends for five seconds: its file is read once, whole, and others do not wait for it."""
    workplace.configure("sources.inbox.rescan_seconds", 0.5)
    lines = [f"Line {number} of a file that grows.\n" for number in range(50)]
    stop = threading.Event()

    def write() -> None:
        with (workplace.inbox / "growing.txt").open("w") as file:
            for line in lines:
                file.write(line)
                file.flush()
                stop.wait(0.1)

    with workplace.daemon() as daemon:
        daemon.until_ready()
        writer = threading.Thread(target=write)
        writer.start()
        workplace.write("quick.txt", "This one is written at once.")
        daemon.until_settled(1)
        assert writer.is_alive()
        writer.join()
        daemon.until_settled(2)
        rows = [row for row in workplace.rows() if row.document_id == "inbox/growing.txt"]
        text = " ".join(row.text for row in sorted(rows, key=lambda row: row.chunk_index))
        assert "".join(lines).split() == text.split()
        assert daemon.totals["chunks_embedded"] == 1 + len(rows)


def test_a_file_that_vanishes_under_the_daemon_leaves_nothing(workplace: Workplace) -> None:
    """Files that go away between their event and their reading are neither letters nor rows, and all adds up."""
    workplace.configure("sources.inbox.mass_delete.documents", 1000)
    # A slow model, and little that waits for it: most of what is under way waits unread.
    workplace.configure("embedders.hash.delay_seconds_per_text", 0.1)
    workplace.configure("embedding.window", 1)
    with workplace.daemon() as daemon:
        daemon.until_ready()
        for number in range(240):
            workplace.write(f"{number:03}.txt", f"Text {number}.")
        daemon.until(lambda: daemon.totals["in_flight"] >= 220, "the new files are under way")
        for number in range(60, 240):
            (workplace.inbox / f"{number:03}.txt").unlink()
        expected = {f"inbox/{number:03}.txt" for number in range(60)}
        daemon.until(lambda: not daemon.totals["in_flight"] and workplace.documents() == expected, "all is settled")
        assert workplace.letters() == []
        _adds_up(daemon)


def test_a_text_that_is_emptied_takes_its_rows_along(workplace: Workplace) -> None:
    """A document without text has no rows: those of its last version go, and it is counted."""
    path = workplace.write("page.html", "<html><body><p>Some text.</p></body></html>")
    with workplace.daemon() as daemon:
        daemon.until_ready()
        daemon.until_settled(1)
        assert {"inbox/page.html"} == workplace.documents()
        path.write_text(MARKUP)
        daemon.until_settled(2)
        assert set() == workplace.documents()
        assert 'ingestd_documents_without_text_total{collection="articles"} 1.0' in daemon.get("/metrics")[1]
