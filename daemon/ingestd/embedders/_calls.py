"""One call's texts on their way to a provider, and what was paid for by calls that failed.

Owns what the threads of a call share: the batches that are left, what was found, and what ended it. A call that failed
comes again with the same texts, so what was found for it is kept for a while, within bounds.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from ingestd.model import SparseVector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from ingestd.model import DenseVector, Role

KEPT_BYTES = 64 * 1024 * 1024
"""Of vectors that are kept for a call that comes again."""

Vector: TypeAlias = "DenseVector | SparseVector"


class Fault(str):
    """Why a text has no vector."""

    __slots__ = ()


class Batch(NamedTuple):
    texts: Sequence[str]
    refusals: int = 0
    """How often the provider wanted it later, in a row."""
    judge: bool = False
    """It is the plain sentence that tells whether the provider is well."""


class Call:
    """One call's texts on their way: what is still to be asked, what was found, and what ended it.

    Args:
        role: The texts'.
        batches: What is to be asked.
        until: When its time is over.
        give_up: Called for each refused request that will not be asked again.
        keep: Takes what is found when the call is over: it was paid for.
    """

    def __init__(
        self,
        role: Role,
        batches: Sequence[Batch],
        until: float,
        give_up: Callable[[], None],
        keep: Callable[[dict[tuple[Role, str], Vector | Fault]], None],
    ) -> None:
        self.role = role
        self.until = until
        self._give_up = give_up
        self._keep = keep
        self.found: dict[tuple[Role, str], Vector | Fault] = {}
        self.error: BaseException | None = None
        self.sound: bool | None = None
        """Whether a plain sentence passes; None: nobody had to ask."""
        self.judging = threading.Lock()
        """Held while that is found out."""
        self._batches = deque(batches)
        self._under_way = 0
        self._changed = threading.Condition()

    @property
    def waiting(self) -> int:
        """How many batches are still to be asked."""
        return len(self._batches)

    def take(self) -> Batch | None:
        """Return what to ask next, waiting while others may still halve theirs; None: there is nothing more."""
        with self._changed:
            self._changed.wait_for(lambda: self._batches or not self._under_way or self.error is not None)
            if self.error is not None or not self._batches:
                return None
            self._under_way += 1
            return self._batches.popleft()

    def settle(self, found: Mapping[str, Vector | Fault], more: Sequence[Batch] = ()) -> None:
        """Note what became of a batch, and what of it is to be asked again, before all else."""
        known = {(self.role, text): vector for text, vector in found.items()}
        with self._changed:
            self._under_way -= 1
            if self.error is None:
                self.found.update(known)
                self._batches.extendleft(reversed(more))
                more = ()
            self._changed.notify_all()
        if self.error is not None:
            self._keep(known)
            self._drop(more)

    def fail(self, error: BaseException) -> None:
        """End the call; the first error counts."""
        with self._changed:
            self.error = self.error or error
            self._under_way -= 1
            left, self._batches = self._batches, deque()
            self._changed.notify_all()
        self._drop(left)

    def _drop(self, batches: Iterable[Batch]) -> None:
        for batch in batches:
            if batch.refusals:
                self._give_up()

    def over(self, seconds: float) -> bool:
        """Wait; return whether everything was asked, or it failed."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self.error is not None or not (self._batches or self._under_way), seconds
            )


class Kept:
    """Vectors that were paid for by calls that failed: they come again. Safe to call from several threads."""

    def __init__(self, most: int = KEPT_BYTES) -> None:
        self._most = most
        self._bytes = 0
        self._vectors: OrderedDict[tuple[Role, str], Vector | Fault] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, keys: Sequence[tuple[Role, str]]) -> dict[tuple[Role, str], Vector | Fault]:
        """Return what is kept of these, and keep it no longer."""
        with self._lock:
            found = {key: self._vectors.pop(key) for key in dict.fromkeys(keys) if key in self._vectors}
            self._bytes -= sum(_size(key, vector) for key, vector in found.items())
            return found

    def put(self, vectors: Mapping[tuple[Role, str], Vector | Fault]) -> None:
        """Keep these; what was kept for longest goes where there is no room."""
        with self._lock:
            for key, vector in vectors.items():
                if key not in self._vectors:
                    self._vectors[key] = vector
                    self._bytes += _size(key, vector)
            while self._bytes > self._most:
                self._bytes -= _size(*self._vectors.popitem(last=False))


def _size(key: tuple[Role, str], vector: Vector | Fault) -> int:
    size = len(vector) if isinstance(vector, str) else sum(array.nbytes for array in _arrays(vector))
    return 4 * len(key[1]) + size + 500


def _arrays(vector: Vector) -> tuple[NDArray[Any], ...]:
    return (vector.indices, vector.values) if isinstance(vector, SparseVector) else (vector,)
