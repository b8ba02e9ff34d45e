"""Outcomes to the ledger, the seens, the retry queue and the dead letters, in one transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ingestd.model import Settled, Verdict
from ingestd.store import dead_letters, ledger, retries, seens

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping, Sequence

    from ingestd.model import Fingerprints, Outcome, Parked


def settle(
    connection: sqlite3.Connection,
    outcomes: Sequence[Outcome],
    fingerprints: Mapping[str, Fingerprints],
    *,
    limits: dead_letters.Limits,
    now: float,
) -> Settled:
    """Apply outcomes in order.

    Args:
        connection: In a transaction, which is rolled back if this raises.
        outcomes: Of any collections and sources.
        fingerprints: By collection.
        limits: How much the dead letters may take.
        now: Seconds since 1970.

    Raises:
        UnavailableError: There would be more dead letters than allowed.
        KeyError: A collection has no fingerprints.
        ValueError: An outcome lacks what its verdict needs.
    """
    letters = dead_letters.Settlement(connection, limits, now)
    superseded: list[Parked] = []
    mended = 0
    # One statement for all, and the last word on a document stands.
    entries = {outcome.entry.key: outcome.entry for outcome in outcomes if outcome.entry is not None}
    ledger.put(connection, entries.values())
    parked = retries.any_parked(connection)
    for outcome in outcomes:
        fingerprint = fingerprints[outcome.event.key.collection]
        seens.settle(connection, outcome, fingerprint)
        if parked or outcome.verdict is Verdict.RETRYING:
            parked = True
            superseded += retries.settle(connection, outcome, now)
        mended += letters.settle(outcome, fingerprint)
    letters.check()
    return Settled(superseded=len(superseded), mended=mended, replaced=tuple(superseded))
