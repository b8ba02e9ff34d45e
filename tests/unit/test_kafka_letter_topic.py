"""Dead letters as records: what is left out of one that is too large, which of them stand, and what is refused."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, ClassVar, Self

import pytest
from pydantic import ValidationError

from ingestd.errors import FatalError
from ingestd.model import DocumentKey, Event, Failure, Op, Outcome, Record, Stage, Verdict, Version
from ingestd.sources._kafka.letter_topic import LetterTopic
from ingestd.sources._kafka.letters import CONNECT, Said, Written, forms, letter_of, mark, marked
from ingestd.sources.kafka import Config

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE = "s"
TOPIC = "t" * 249
"""As long as Kafka lets it be."""
RECORD = Record(TOPIC, 3, 7, 1000, b"k" * 9000, b"v" * 9000, (("own", b"h" * 9000), ("none", None)))


def outcome(record: Record | None = RECORD, message: str = "m" * 9000) -> Outcome:
    """Return a dead letter with something large in every place."""
    event = Event(
        DocumentKey("c", "d" * 9000),
        Op.UPSERT,
        SOURCE,
        RECORD.position,
        payload=None,
        version=Version(7, f"kafka:cluster/{TOPIC}/3"),
        record=record,
    )
    return Outcome(event, Verdict.DEAD_LETTERED, failure=Failure(Stage.EXTRACT, "SomeError", message, "t" * 9000))


def said(now: float = 5.0) -> Said:
    """Return the rest of what a letter says."""
    return Said("group", "f", now)


def settings(**more: Any) -> dict[str, Any]:
    """Return the settings of a source that keeps its letters on a topic."""
    return {"bootstrap_servers": ["x:1"], "group_id": "g", "collection": "c", "dead_letter_topic": "docs.dead", **more}


def on_topic(written: Written, offset: int = 0, partition: int = 0) -> Record:
    """Return a record of the letters' topic as it is read."""
    return Record("letters", partition, offset, 0, written.key, written.value, tuple(written.headers))


def size(written: Written) -> int:
    """Return the bytes of a record."""
    return on_topic(written).size


def test_a_letter_has_less_of_its_record_in_each_form() -> None:
    """First the value goes, then its headers, its key, and the length of what is said; each form says what."""
    found = list(forms(outcome(), said()))
    parts = ["value", "headers", "key", "message"]
    assert [tuple(parts[:count]) for count in range(5)] == [form.left_out for form in found]
    sizes = [size(form) for form in found]
    assert sizes == sorted(sizes, reverse=True)
    assert all(before - after > 8000 for before, after in itertools.pairwise(sizes)), sizes
    assert sizes[-1] < 3000, "the last one fits everywhere"
    whole = found[0]
    assert (RECORD.key, RECORD.value, ("own", b"h" * 9000)) == (whole.key, whole.value, whole.headers[0])
    for form, without in zip(found[1:], ("value", "value,headers", "value,headers,key"), strict=False):
        headers = dict(form.headers)
        assert (without.encode(), b"left out") == (headers["ingestd.left-out"], headers["ingestd.value"])
        assert (b"m" * 9000, b"d" * 9000) == (headers[f"{CONNECT}exception.message"], headers["ingestd.document-id"])


def test_a_form_in_part_is_a_letter_that_cannot_be_replayed() -> None:
    """Who failed, where, as which version and why is read back from each; the record only from the whole one."""
    whole, *partial = (letter_of(on_topic(form), 0, values=True) for form in forms(outcome(), said()))
    assert whole is not None
    assert RECORD.headers[:1] == (whole.record or pytest.fail("it is not whole")).headers
    assert (RECORD.value, 9000) == (whole.data, whole.size)
    for letter in partial:
        assert letter is not None
        assert (RECORD.position, SOURCE, Version(7, f"kafka:cluster/{TOPIC}/3")) == (
            letter.position,
            letter.source,
            letter.version,
        )
        assert letter.failure.message.startswith("mmm")
        assert (None, None, None) == (letter.record, letter.data, letter.size)
    without = letter_of(on_topic(next(forms(outcome(), said()))), 0, values=False)
    assert without is not None
    assert (None, None, 9000) == (without.record, without.data, without.size)


@pytest.mark.parametrize("key", [None, b"k"])
@pytest.mark.parametrize("value", [None, b"", b"v"])
def test_every_form_has_a_key_or_a_value(key: bytes | None, value: bytes | None) -> None:
    """The client takes nothing that has neither; a value that is null is read back as null, and not as an empty one."""
    record = Record("t", 0, 0, -1, key, value)
    found = list(forms(outcome(record), said()))
    assert all(form.key is not None or form.value is not None for form in found)
    letter = letter_of(on_topic(found[0]), 0, values=True)
    assert record == (letter or pytest.fail("no letter")).record


def test_a_letter_without_a_record_is_refused() -> None:
    """Its position is no topic's, and what it was is not known: nothing may go on as if it were kept."""
    with pytest.raises(FatalError, match=r"t/3@7: .* has a record"):
        next(forms(outcome(None), said()))


class Counted(bytes):
    """A value that is counted while it is held."""

    held: ClassVar[int] = 0
    most: ClassVar[int] = 0

    def __new__(cls, data: bytes) -> Self:
        """Count it."""
        Counted.held += 1
        Counted.most = max(Counted.most, Counted.held)
        return super().__new__(cls, data)

    def __del__(self) -> None:
        """Count it out."""
        Counted.held -= 1


def test_what_stands_is_found_out_in_any_order_and_without_values() -> None:
    """A mark ends the letters of its position up to its own; a later letter stands, wherever the two lie.

    No more values are held than the one that is looked at and the one that is fetched.
    """

    def letter(position: int, at: float) -> Written:
        record = Record("t", 0, position, -1, b"k", b"v")
        return next(forms(outcome(record), said(at)))

    def marking(position: int, at: float) -> Written:
        found = letter_of(on_topic(letter(position, at)), 0, values=False)
        return mark(found or pytest.fail("no letter"))

    lying = [
        *(marking(0, 5.0), letter(0, 5.0)),  # the mark is read first: it is on another partition
        *(letter(1, 5.0), marking(1, 5.0), marking(1, 3.0)),
        *(letter(2, 6.0), marking(2, 5.0), letter(2, 5.0)),
        *(letter(3, 5.0), letter(3, 7.25), letter(3, 6.0)),
        *(letter(4, 5.1), marking(4, 5.1), letter(4, 5.2)),
    ]

    def read() -> Iterator[Record]:
        for offset, written in enumerate(lying):
            value = None if written.value is None else Counted(written.value)
            yield on_topic(Written(written.key, value, written.headers), offset)

    topic = LetterTopic(SOURCE, Config(topics=("docs",), **settings()), "f")
    standing = topic._standing(read())
    assert {"t/0@2": (6.0, (0, 5)), "t/0@3": (7.25, (0, 9)), "t/0@4": (5.2, (0, 13))} == {
        position: (found.last_failed_at, place) for position, (place, found) in standing.items()
    }
    assert 0 == Counted.held
    assert Counted.most <= 2, "values of letters are held together"
    assert marked(on_topic(letter(0, 5.0))) is None


@pytest.mark.parametrize(
    "pattern", [r"docs\..*", "docs", "^docs", "d", r"docs\.dead$", r".*\.dead|other", r"other|.*\.dead"]
)
def test_a_pattern_that_takes_the_letters_in_is_refused(pattern: str) -> None:
    """As the client matches: from the name's beginning, not to its end. Both are named, and the way out works."""
    with pytest.raises(ValidationError, match="would feed itself") as refused:
        Config(topic_pattern=pattern, **settings())
    message = str(refused.value)
    assert "docs.dead" in message
    assert f"({pattern})" in message
    advised = message.partition("as in ")[2].split(" ", 1)[0]
    assert advised == Config(topic_pattern=advised, **settings()).topic_pattern


@pytest.mark.parametrize("pattern", [r"docs$", r"documents.*", r"\.dead", "ocs.dead", r"docs\.dead\."])
def test_a_pattern_that_leaves_the_letters_out_is_taken(pattern: str) -> None:
    """One that would only be found somewhere in the name does not match."""
    assert pattern == Config(topic_pattern=pattern, **settings()).topic_pattern
