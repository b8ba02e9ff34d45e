"""Dataclasses that nobody changes, at the price of those that anybody may.

A dataclass that is frozen at run time sets each field through ``object.__setattr__``: several times the cost of an
assignment, at a hundred fields for a small document on its way. So here ``frozen`` is kept by the type checker, which
reads all of this code, and costs nothing when it runs: a document of 1 KiB takes a sixth less time from topic to row.
(Named tuples were turned down: two that are no relation are equal where their fields are.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass as value
else:
    from dataclasses import dataclass

    def value(*, frozen: bool, slots: bool, order: bool = False) -> Any:  # noqa: ANN401 - a decorator of any class
        """Return ``dataclasses.dataclass``: equal and hashed by fields, as a frozen one, and immutable to checkers."""
        if not frozen:
            raise TypeError("a value is frozen; take dataclasses.dataclass for what changes")
        return dataclass(slots=slots, order=order, unsafe_hash=True)


__all__ = ["value"]
