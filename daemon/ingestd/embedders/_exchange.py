"""What providers of dense vectors have in common on the wire.

Owns reading vectors, from numbers or from base64 of little-endian float32, whichever the server sends; and OpenAI's
form of an answer, which most share: ``data`` is a list of ``index`` and ``embedding``, put into the order of ``index``
whatever order they came in.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ingestd.embedders._remote import Request
from ingestd.model import VectorKind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ingestd.embedders._client import Client
    from ingestd.model import DenseVectors, Role


class Payload(Protocol):
    """What is asked for texts."""

    def __call__(self, texts: Sequence[str], role: Role, *, cut: bool) -> dict[str, Any]:
        """Return the request's body; ``cut``: texts that are too long are to be cut."""
        ...


class Exchange:
    """One kind of request, and of answer, for dense vectors (``_remote.Wire``).

    Args:
        path: Behind the base address.
        payload: Returns what is asked for texts of a role.
        rows: Returns an answer's vectors as JSON has them, in the order of so many texts.
        used: The keys that lead to the number of tokens that the provider counted.
        space: What the vectors depend on beside model, dimension and prompts.
        unit: Whether they are brought to length 1.
    """

    kind = VectorKind.DENSE
    known = True
    inputs: int | None = None

    def __init__(
        self,
        path: str,
        payload: Payload,
        rows: Callable[[Any, int], Sequence[Any]],
        used: Sequence[str],
        space: Mapping[str, Any] | None = None,
        *,
        unit: bool = False,
    ) -> None:
        self._path = path
        self._payload = payload
        self._rows = rows
        self._used = used
        self._space = dict(space or {})
        self._unit = unit

    def request(self, texts: Sequence[str], role: Role, *, cut: bool) -> Request:
        """Return the request for the vectors of texts."""
        return Request(self._path, self._payload(texts, role, cut=cut))

    def vectors(self, answer: Any, count: int) -> DenseVectors:  # noqa: ANN401 - JSON
        """Return an answer's vectors in the order of the texts."""
        vectors = stacked(self._rows(answer, count))
        if self._unit:
            norms = np.linalg.norm(vectors, axis=1, keepdims=True)
            np.divide(vectors, norms, out=vectors, where=np.isfinite(norms) & (norms > 0))
        return vectors

    def tokens(self, answer: Any) -> int | None:  # noqa: ANN401 - JSON
        """Return how many tokens the provider counted, where it says."""
        for key in self._used:
            answer = (answer or {}).get(key)
        return int(answer) if isinstance(answer, int | float) else None

    def space(self, client: Client | None) -> dict[str, Any]:
        """Return what the vectors depend on beside model, dimension and prompts."""
        del client
        return self._space


def listed(
    path: str,
    payload: Payload,
    space: Mapping[str, Any] | None = None,
) -> Exchange:
    """Return an exchange whose answers are in OpenAI's form."""
    return Exchange(path, payload, _of_data, ("usage", "total_tokens"), space)


def _of_data(answer: Any, count: int) -> list[Any]:  # noqa: ANN401 - JSON
    return in_order([(row["index"], row["embedding"]) for row in answer["data"]], count)


def in_order(rows: Sequence[tuple[int, Any]], count: int) -> list[Any]:
    """Return rows in the order of their indices; as they come where their number is wrong, which is found out later.

    Raises:
        ValueError: An index is missing, or there twice.
    """
    if len(rows) == count and sorted(index for index, _ in rows) != list(range(count)):
        raise ValueError(f"the indices are not those of {count} texts")
    return [row for _, row in sorted(rows, key=lambda row: row[0])]


def stacked(rows: Sequence[Any]) -> DenseVectors:
    """Return vectors as JSON has them as an array, shape (texts, dimension), float32.

    Raises:
        ValueError, TypeError: They are none, or of different lengths.
    """
    vectors = [_vector(row) for row in rows]
    if len({vector.shape for vector in vectors}) > 1:
        raise ValueError("the vectors have different lengths")
    return np.stack(vectors) if vectors else np.empty((0, 0), np.float32)


def _vector(row: Any) -> np.ndarray[Any, np.dtype[np.float32]]:  # noqa: ANN401 - JSON
    if isinstance(row, str):
        return np.frombuffer(base64.b64decode(row, validate=True), dtype="<f4").astype(np.float32)
    if not isinstance(row, list):
        raise TypeError(f"a vector is {type(row).__name__}")
    with np.errstate(over="ignore"):  # what is too large for float32 is infinite, and found out
        vector = np.asarray([np.nan if number is None else number for number in row], dtype=np.float32)
    if vector.ndim != 1:
        raise ValueError("a vector is a list of numbers")
    return vector
