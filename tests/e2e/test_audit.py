"""``ingestd audit`` as a person runs it: without a daemon, beside one, and beside one that is busy."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from tests.fixtures.tampering import tampering

if TYPE_CHECKING:
    from tests.fixtures.daemon import Workplace

pytestmark = pytest.mark.lite

PARAGRAPHS = 4
KINDS = ("missing", "stale", "orphan", "duplicate")


def text(name: str) -> str:
    """Return a document of some chunks."""
    return "\n\n".join(f"Paragraph {number} of {name}. " + f"{name} {number} " * 120 for number in range(PARAGRAPHS))


def audit(workplace: Workplace, *arguments: str, code: int = 0) -> dict[str, Any]:
    """Audit, check the exit code, and return the answer."""
    answer = workplace.ask("audit", "--json", *arguments, timeout=240)
    found: dict[str, Any] = answer.json
    undecided = any(row["undecided"] for row in found["collections"])
    expected = code or int(undecided)  # "it could not be said" of a document that never keeps still
    assert answer.code == expected, f"exit {answer.code}\n{answer.out}\n{answer.err[-4000:]}"
    _check_form(found, repaired="--repair" in arguments)
    return found


def _check_form(found: dict[str, Any], *, repaired: bool) -> None:
    """Check that an answer has the form that is documented, and that it adds up."""
    assert found.keys() == {"collections", "differences"}
    kinds = Counter((one["collection"], one["kind"]) for one in found["differences"])
    for row in found["collections"]:
        assert row.keys() == {"name", "documents", "rows", *KINDS, "undecided", *(["repaired"] if repaired else [])}
        assert [row[kind] for kind in KINDS] == [kinds[row["name"], kind] for kind in KINDS]
    for one in found["differences"]:
        assert one.keys() == {"collection", "kind", "document_id", "chunk_id", "detail"}
        assert one["detail"]


def differences(found: dict[str, Any]) -> set[tuple[str, str, str | None]]:
    """Return what differs: kind, document, chunk; each once."""
    listed = [(one["kind"], one["document_id"], one["chunk_id"]) for one in found["differences"]]
    assert len(set(listed)) == len(listed)
    return set(listed)


@pytest.fixture
def filled(workplace: Workplace) -> Workplace:
    """A workplace with six documents of several chunks each, worked off."""
    for number in range(6):
        workplace.write(f"{number}.txt", text(f"d{number}"))
    assert workplace.once()["written"] == 6
    return workplace


def tampered(workplace: Workplace) -> set[tuple[str, str, str | None]]:
    """Change rows of each kind behind the daemon's back; return what an audit has to find."""
    with tampering(workplace) as milvus:
        rows = milvus.rows()
        assert all(len(found) >= 3 for found in rows.values())
        gone, said, other, known = (rows[f"inbox/{number}.txt"] for number in range(4))
        milvus.delete(gone[1])
        milvus.change(said[0], text="Something else.")
        milvus.change(other[2], metadata={"tampered": True})
        milvus.change(other[0], source="nobody")
        milvus.insert(known[0], id="d" * 32)
        milvus.insert(known[1], id="c" * 32, chunk_index=77, text="foreign", version=1)
        milvus.insert(known[2], id="e" * 32, document_id="inbox/nobody.txt")
    return {
        ("missing", "inbox/0.txt", gone[1]["id"]),
        ("stale", "inbox/1.txt", said[0]["id"]),
        ("stale", "inbox/2.txt", other[2]["id"]),
        ("stale", "inbox/2.txt", other[0]["id"]),
        ("duplicate", "inbox/3.txt", "d" * 32),
        ("stale", "inbox/3.txt", "c" * 32),
        ("orphan", "inbox/nobody.txt", "e" * 32),
    }


def test_what_was_changed_is_found_exactly_and_mended(filled: Workplace) -> None:
    """Rows and files, while no daemon runs: each difference with its kind, and nothing else; then all is as it was."""
    with tampering(filled) as milvus:
        whole = milvus.said()
        removed = {row["id"] for row in milvus.rows()["inbox/4.txt"]}
    expected = tampered(filled)
    (filled.inbox / "4.txt").unlink()
    filled.write("5.txt", text("d5") + "\n\nAn edit.")
    filled.write("new.txt", "A new text.")
    os.utime(filled.inbox / "3.txt")
    expected |= {
        ("orphan", "inbox/4.txt", None),
        ("stale", "inbox/5.txt", None),
        ("missing", "inbox/new.txt", None),
    }
    assert differences(audit(filled, code=4)) == expected
    repaired = audit(filled, "--repair")
    assert differences(repaired) == expected, "a look changes nothing"
    (row,) = repaired["collections"]
    assert row["repaired"] == len(expected)
    assert all(one["detail"].endswith("; mended") for one in repaired["differences"])
    with tampering(filled) as milvus:
        now = milvus.said()
    after = {"name": "articles", "documents": 6, "rows": len(now), **dict.fromkeys([*KINDS, "undecided"], 0)}
    assert audit(filled) == {"collections": [after], "differences": []}
    untouched = {at: row for at, row in whole.items() if row["document_id"] not in {"inbox/4.txt", "inbox/5.txt"}}
    assert {at: now[at] for at in untouched} == untouched
    assert {row["document_id"] for at, row in now.items() if at not in untouched} == {"inbox/5.txt", "inbox/new.txt"}
    assert not removed & now.keys()
    assert filled.once()["unchanged"] == 6


def test_a_person_reads_what_differs(filled: Workplace) -> None:
    """A table, then some lines of each kind, with how many there are; only the collection that was asked for."""
    expected = tampered(filled)
    answer = filled.ask("audit", "--limit", "2")
    assert answer.code == 4, answer.err
    lines = answer.out.splitlines()
    assert lines[0].split() == ["name", "documents", "rows", *KINDS, "undecided"]
    assert lines[1].split()[0] == "articles"
    assert "articles: 4 stale" in lines
    assert "  … and 2 more; --limit and --json show them" in lines
    shown = [line.split() for line in lines if line.startswith("  inbox/")]
    stale = sorted(at for kind, _document, at in expected if kind == "stale" and at is not None)
    assert len(shown) == 3 + 2
    assert sum(at in stale for _document, at in shown) == 2
    assert filled.ask("audit", "--collection", "articles").code == 4
    unknown = filled.ask("audit", "--collection", "artikel")
    assert (unknown.code, unknown.out) == (78, "")
    assert "there is no collection 'artikel' in the configuration; there is articles" in unknown.err


def test_a_running_daemon_mends_what_differs(filled: Workplace) -> None:
    """The audit looks through its Milvus, and has it mend; its accounts add up, and it embeds only what was wrong."""
    with filled.daemon() as daemon:
        daemon.until_ready()
        daemon.until_settled(6)
        with tampering(filled) as milvus:
            whole = milvus.said()
        expected = tampered(filled)
        assert differences(audit(filled, code=4)) == expected
        repaired = audit(filled, "--repair")
        assert differences(repaired) == expected
        assert repaired["collections"][0]["repaired"] == len(expected)
        assert differences(audit(filled)) == set()
        with tampering(filled) as milvus:
            assert milvus.said() == whole
        totals = daemon.totals
        ends = ("written", "deleted", "unchanged", "superseded", "dead_lettered", "retrying", "in_flight")
        assert totals["accepted"] == sum(totals[end] for end in ends)
        assert (totals["written"], totals["chunks_embedded"], totals["dead_lettered"]) == (3, 4, 0)
        assert daemon.stop() == 0
    assert differences(audit(filled)) == set()


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_busy_daemon_has_no_difference(workplace: Workplace) -> None:
    """A slow model, and files that are made, edited and removed all the time: nothing false is found, and what was
    tampered with is found among all that.
    """  # noqa: D205 - one sentence
    workplace.configure("embedders.hash.delay_seconds_per_text", 0.05)
    workplace.configure("sources.inbox.settle_seconds", 0.2)
    workplace.configure("sources.inbox.rescan_seconds", 5)
    workplace.write("still.txt", text("still"))
    stop = threading.Event()
    edits: list[int] = []

    def edit() -> None:
        number = 0
        while not stop.wait(0.05):
            name = f"busy{number % 12}.txt"
            if number % 5 == 4:
                (workplace.inbox / name).unlink(missing_ok=True)
            else:
                workplace.write(name, text(f"edit{number}"))
            edits.append(number)
            number += 1

    with workplace.daemon() as daemon:
        daemon.until_ready()
        daemon.until(lambda: daemon.totals.get("written", 0) == 1, "the still one is written")
        editor = threading.Thread(target=edit)
        editor.start()
        try:
            daemon.until(lambda: daemon.totals["in_flight"] > 2, "it is busy")
            before = len(edits), daemon.totals["written"]
            assert differences(audit(workplace)) == set()
            assert (len(edits), daemon.totals["written"]) > before
            with tampering(workplace) as milvus:
                (first, *_rest) = milvus.rows()["inbox/still.txt"]
                milvus.delete(first)
            assert differences(audit(workplace, "--repair")) == {("missing", "inbox/still.txt", first["id"])}
        finally:
            stop.set()
            editor.join()
        daemon.until(lambda: not daemon.totals["in_flight"] and not daemon.totals["retrying"], "it is idle")
        assert differences(audit(workplace)) == set()


def test_held_deletes_are_told_and_left(workplace: Workplace) -> None:
    """A repair does not go past the guard: it says how to confirm, and nothing is deleted until somebody does."""
    for number in range(60):
        workplace.write(f"{number:02}.txt", f"Text {number}.")
    assert workplace.once()["written"] == 60
    for number in range(30):
        (workplace.inbox / f"{number:02}.txt").unlink()
    gone = {("orphan", f"inbox/{number:02}.txt", None) for number in range(30)}
    left = audit(workplace, "--repair", code=4)
    assert differences(left) == gone
    assert left["collections"][0]["repaired"] == 0
    (reason,) = {one["detail"].partition("; not mended: ")[2] for one in left["differences"]}
    assert reason.startswith("30 documents are gone at once, their deletes are held; bring the files back, or confirm")
    assert reason.endswith("ingestd forget --source inbox --absent")
    assert len(workplace.documents()) == 60
    assert workplace.ask("forget", "--source", "inbox", "--absent").code == 0
    assert audit(workplace, "--repair")["collections"][0]["repaired"] == 30
    assert len(workplace.documents()) == 30


def test_a_file_that_was_moved_away_is_not_gone(workplace: Workplace) -> None:
    """A drop box keeps the document, and so does the failed version of one: what is left of it is as it should be."""
    workplace.configure("sources.inbox.failed", str(workplace.inbox.parent / "failed"))
    workplace.write("a.json", '{"text": "good"}')
    workplace.write("b.txt", "A text.")
    assert workplace.once()["written"] == 2
    workplace.write("a.json", "{")
    assert workplace.once(code=3)["dead_lettered"] == 1
    assert not (workplace.inbox / "a.json").exists()
    assert differences(audit(workplace)) == set()
    workplace.configure("sources.inbox.done", str(workplace.inbox.parent / "done"))
    assert workplace.once()["unchanged"] == 1
    assert not list(workplace.inbox.iterdir())
    assert differences(audit(workplace)) == set()
    assert len(workplace.documents()) == 2


def test_what_cannot_be_mended_is_left_with_the_reason(workplace: Workplace) -> None:
    """A file that is bad by now: its edit fails again, and what Milvus has stays the version before it."""
    workplace.write("good.json", '{"text": "good"}')
    workplace.once()
    before = workplace.rows()
    workplace.write("good.json", "{")
    left = audit(workplace, "--repair", code=4)
    (one,) = left["differences"]
    assert (one["kind"], one["document_id"]) == ("stale", "inbox/good.json")
    assert one["detail"].endswith("not mended: it failed and is a dead letter: ingestd dead-letters list says why")
    assert workplace.rows() == before
    assert differences(audit(workplace)) == set(), "it failed with what is there now, and that is known"


def test_files_that_were_moved_away_are_put_back_for_a_repair(workplace: Workplace) -> None:
    """And end where they were; one that is nowhere any more is named. None of them is an orphan."""
    workplace.configure("sources.inbox.done", "done")
    for number in range(3):
        workplace.write(f"{number}.txt", text(f"d{number}"))
    workplace.once()
    done = workplace.root / "done"
    assert {path.name for path in done.iterdir()} == {"0.txt", "1.txt", "2.txt"}
    (done / "1.txt").unlink()
    with tampering(workplace) as milvus:
        whole, rows = milvus.said(), milvus.rows()
        gone = [rows[f"inbox/{number}.txt"][1] for number in range(2)]
        milvus.delete(*gone)
    left = audit(workplace, "--repair", code=4)
    assert differences(left) == {("missing", f"inbox/{number}.txt", gone[number]["id"]) for number in range(2)}
    outcomes = {one["document_id"]: one["detail"].partition("; mended")[1] for one in left["differences"]}
    assert outcomes == {"inbox/0.txt": "; mended", "inbox/1.txt": ""}
    (lost,) = [one["detail"] for one in left["differences"] if one["document_id"] == "inbox/1.txt"]
    assert "its file is neither in the folder nor where files are moved to; put it back" in lost
    assert {path.name for path in done.iterdir()} == {"0.txt", "2.txt"}
    with tampering(workplace) as milvus:
        assert milvus.said() == {at: row for at, row in whole.items() if at != gone[1]["id"]}


def test_what_was_found_is_told_though_the_repair_breaks(filled: Workplace) -> None:
    """The daemon that the command runs ends amid it: it is told at once, after all that differs."""
    filled.know_the_tests_plug_ins()
    filled.configure("embedders.hash.type", "tests.fixtures.poison_embedder")
    filled.write("6.txt", "This one BREAKS it.")
    (filled.inbox / "2.txt").unlink()
    began = time.monotonic()
    answer = filled.ask("audit", "--json", "--repair", timeout=240)
    assert answer.code == 1
    assert time.monotonic() - began < 60
    assert "the daemon that this command ran ended by itself" in answer.err
    documents = {one["document_id"] for one in answer.json["differences"]}
    assert documents == {"inbox/2.txt", "inbox/6.txt"}


def test_sources_that_feed_it_no_more_are_named(filled: Workplace) -> None:
    """Their rows are no differences of those that do; nothing is done about them."""
    filled.settings["sources"]["other"] = {**filled.settings["sources"].pop("inbox"), "path": "other"}
    (filled.root / "other").mkdir()
    answer = filled.ask("audit", "--json")
    assert (answer.code, differences(answer.json)) == (0, set())
    assert "6 documents of 'inbox', which does not feed it, were not looked at" in answer.err
    assert "ingestd forget --source inbox" in answer.err


def test_before_the_first_run_all_files_are_missing(workplace: Workplace) -> None:
    """There is no state, no collection and no Milvus: a look makes none of them, and a repair is a first run."""
    for number in range(3):
        workplace.write(f"{number}.txt", f"Text {number}.")
    missing = {("missing", f"inbox/{number}.txt", None) for number in range(3)}
    assert differences(audit(workplace, code=4)) == missing
    assert sorted(path.name for path in workplace.root.iterdir()) == ["inbox", "ingestd.toml"]
    assert differences(audit(workplace, "--repair")) == missing
    assert differences(audit(workplace)) == set()
    assert workplace.documents() == {f"inbox/{number}.txt" for number in range(3)}


def test_what_cannot_be_compared_is_said(filled: Workplace) -> None:
    """A folder that is gone is not empty, a lost state knows nothing, and a Milvus that is away is no answer."""
    filled.inbox.rename(filled.root / "away")
    answer = filled.ask("audit", "--json")
    assert (answer.code, differences(answer.json)) == (1, set())
    assert "nothing can be said about files: sources.inbox: " in answer.err
    (filled.root / "away").rename(filled.inbox)

    filled.state.rename(filled.root / "lost")
    answer = filled.ask("audit", "--repair")
    assert (answer.code, answer.out) == (1, "")
    assert "is not about the collection articles as it is now" in answer.err
    (filled.root / "lost").rename(filled.state)

    filled.configure("milvus.uri", "http://127.0.0.1:9")
    answer = filled.ask("audit")
    assert (answer.code, answer.out) == (1, "")
    assert "connecting to http://127.0.0.1:9" in answer.err
