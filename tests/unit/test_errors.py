"""The exception tree in the docstring is the tree."""

from __future__ import annotations

import re

from ingestd import errors
from ingestd.errors import ConfigError, IngestError, Stopped, Superseded, Suspect, TransientError, UnavailableError


def test_the_tree_that_is_drawn_is_the_tree() -> None:
    """Every class below the root is drawn once, and nothing else is."""
    drawn = re.findall(r"[├└]─ (\w+)", errors.__doc__ or "")
    assert drawn == [error.__name__ for error in IngestError.__subclasses__() if error.__module__ == errors.__name__]
    assert re.search(r"^    IngestError$", errors.__doc__ or "", re.MULTILINE)


def test_signals_are_no_errors() -> None:
    """``except IngestError`` must not swallow a stop, or a verdict on a document or a batch."""
    for signal in (Stopped, Superseded, Suspect):
        assert not issubclass(signal, IngestError)


def test_errors_carry_what_their_handlers_need() -> None:
    """Faults one by one, the wait that was asked for, and the breaker's name."""
    assert ConfigError("a: wrong", "b: missing").faults == ("a: wrong", "b: missing")
    assert str(ConfigError("a: wrong", "b: missing")) == "a: wrong\nb: missing"
    assert TransientError("busy", wait=2.0).wait == 2.0
    down = UnavailableError("milvus", "no answer", wait=1.0)
    assert (down.dependency, str(down), down.wait) == ("milvus", "no answer", 1.0)
