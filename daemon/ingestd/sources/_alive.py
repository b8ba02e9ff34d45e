"""Signs of life of what takes long and is not stuck."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

T = TypeVar("T")

EVERY = 1_000
"""Items between two of them."""


def telling(items: Iterable[T], alive: Callable[[], object]) -> Iterator[T]:
    """Yield what is given, and call ``alive`` now and then."""
    for at, item in enumerate(items, start=1):
        if at % EVERY == 0:
            alive()
        yield item
