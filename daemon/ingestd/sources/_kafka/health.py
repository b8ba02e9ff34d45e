"""How a member is, in the words of ``/readyz``: its brokers, and its partitions.

Owns the sentences, and after how long nothing is no longer all right. What there is to say is the view's, and the
member's. A check that is ok has no cure: there is nothing to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ingestd.model import Check

if TYPE_CHECKING:
    from ingestd.sources._kafka.view import View
    from ingestd.sources.kafka import Config

SILENCE = 20.0
"""Seconds without an answer of the group, or of any broker, after which the brokers count as away."""


def broker(name: str, config: Config, view: View, silence: tuple[float, float] | None, waited: float) -> Check:
    """Say whether the brokers answer.

    Args:
        name: The check's.
        config: The source's.
        view: The member's.
        silence: ``Member.silence``.
        waited: Seconds since the view's ``since``; where no broker has answered yet, since the start.
    """
    fault = view.trouble
    if fault is None and silence is None:
        fault = "no broker has answered yet"
        if waited <= SILENCE:
            return Check(name, ok=True, detail=fault)
    silent, session = silence or (0.0, SILENCE)
    if fault is None and silent > min(SILENCE, session):
        # Without its topics a member asks the group for nothing; what brokers say of topics is then the last answer.
        who = "no broker has" if view.missing else "the group has not"
        fault = f"{who} answered for {silent:.0f} s"
    fault = fault or view.stuck
    if fault is None:
        return Check(name, ok=True, detail=f"answered {silent:.0f} s ago")
    servers = ", ".join(config.bootstrap_servers)
    return Check(name, ok=False, detail=fault, cure=f"it is tried again by itself; see to the brokers at {servers}")


def partitions(name: str, config: Config, view: View, waited: float) -> Check:
    """Say whether partitions are held; ``waited``: seconds since the view's ``since``."""
    if view.partitions:
        lags = [partition.lag for partition in view.partitions if partition.lag is not None]
        return Check(name, ok=True, detail=f"{len(view.partitions)} held, {sum(lags)} records behind")
    ok = waited <= config.grace_seconds
    if view.missing:
        verb = "is" if len(view.missing) == 1 else "are"
        detail = f"{_named(view.missing)} {verb} not there"
        # Those that are to be created are, at the start.
        cure = "create it, or set missing_topics = 'create'"
        if config.missing_topics == "create":
            cure = "create it, or start the daemon again, which does"
    else:
        detail = f"none held for {waited:.0f} s"
        if ok and not view.rebalances:
            detail = "joining the group"
        there = f"is there a topic that matches {config.topic_pattern}"
        if config.topics:
            there = f"{'is' if len(config.topics) == 1 else 'are'} {_named(config.topics)} there"
        cure = f"{there} (ingestd check says), and are there no more members than partitions?"
    return Check(name, ok=ok, detail=detail, cure="" if ok else cure)


def _named(topics: tuple[str, ...]) -> str:
    return f"the topic{'' if len(topics) == 1 else 's'} {', '.join(topics)}"
