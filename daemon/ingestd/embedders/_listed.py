"""Answers in OpenAI's form, which most providers share: ``data`` is a list of ``index`` and ``embedding``.

Owns reading them: put into the order of ``index``, whatever order they came in, and from numbers or from base64 of
little-endian float32, whichever the server sends.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import numpy as np

from ingestd.embedders._remote import Request
from ingestd.model import VectorKind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ingestd.embedders._client import Client
    from ingestd.model import DenseVectors, Role


class Listed:
    """Speaks with a provider of that form (``_remote.Wire``).

    Args:
        path: Behind the base address.
        payload: Returns what is asked for texts of a role.
        space: What the vectors depend on beside model, dimension and prompts.
    """

    kind = VectorKind.DENSE
    known = True

    def __init__(
        self,
        path: str,
        payload: Callable[[Sequence[str], Role], dict[str, Any]],
        space: Mapping[str, Any] | None = None,
    ) -> None:
        self._path = path
        self._payload = payload
        self._space = dict(space or {})

    def request(self, texts: Sequence[str], role: Role) -> Request:
        """Return the request for the vectors of texts."""
        return Request(self._path, self._payload(texts, role))

    def vectors(self, answer: Any, count: int) -> DenseVectors:  # noqa: ANN401 - JSON
        """Return an answer's vectors in the order of the texts."""
        rows = answer["data"]
        return stacked(in_order([(row["index"], row["embedding"]) for row in rows], count))

    def tokens(self, answer: Any) -> int | None:  # noqa: ANN401 - JSON
        """Return how many tokens the provider counted."""
        used = (answer.get("usage") or {}).get("total_tokens")
        return used if isinstance(used, int) else None

    def space(self, client: Client | None) -> dict[str, Any]:
        """Return what the vectors depend on beside model, dimension and prompts."""
        del client
        return self._space


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
