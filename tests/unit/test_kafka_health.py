"""What ``/readyz`` says of a Kafka source: of its brokers and its partitions, and what it blames."""

from __future__ import annotations

import math
from typing import Any

import pytest
from kafka.structs import TopicPartition

from ingestd.sources._kafka import health
from ingestd.sources._kafka.view import PartitionView, View
from ingestd.sources.kafka import Config

HELD = PartitionView(TopicPartition("documents", 0), 5, 2, 0.0)


def config_of(**named: Any) -> Config:
    """Return a configuration of one topic, if no other is given."""
    topics = {} if "topic_pattern" in named else {"topics": ("documents",)}
    return Config(bootstrap_servers=("x:1",), group_id="g", collection="c", **{**topics, **named})


@pytest.mark.parametrize(
    ("view", "silence", "waited", "ok", "detail"),
    [
        (View(0.0), None, 3.0, True, "no broker has answered yet"),
        (View(0.0), None, 21.0, False, "no broker has answered yet"),
        (View(0.0, trouble="no broker answers at x:1"), None, 6.0, False, "no broker answers at x:1"),
        (View(0.0), (2.0, 45.0), 60.0, True, "answered 2 s ago"),
        (View(0.0), (21.0, math.inf), 60.0, False, "the group has not answered for 21 s"),
        (View(0.0), (7.0, 6.0), 60.0, False, "the group has not answered for 7 s"),
        (View(0.0, missing=("documents",)), (0.1, math.inf), 3600.0, True, "answered 0 s ago"),
        (View(0.0, missing=("documents",)), (21.0, math.inf), 60.0, False, "no broker has answered for 21 s"),
        (View(0.0, stuck="records do not come"), (1.0, 45.0), 60.0, False, "records do not come"),
    ],
)
def test_a_broker_is_blamed_for_its_own_silence_only(
    view: View,
    silence: tuple[float, float] | None,
    waited: float,
    ok: bool,  # noqa: FBT001 - a parameter of the test
    detail: str,
) -> None:
    """Nothing that never answered is said to answer, and nothing that answers is said to be away."""
    check = health.broker("cms:broker", config_of(), view, silence, waited)
    assert (check.ok, check.detail, bool(check.cure)) == (ok, detail, not ok)


@pytest.mark.parametrize(
    ("view", "waited", "ok", "detail", "cure"),
    [
        (View(0.0), 2.0, True, "joining the group", ""),
        (View(0.0), 61.0, False, "none held for 61 s", "is the topic documents there (ingestd check says), and are"),
        (View(0.0, rebalances=1), 2.0, True, "none held for 2 s", ""),
        (View(0.0, missing=("documents",)), 2.0, True, "the topic documents is not there", ""),
        (
            View(0.0, missing=("documents",)),
            61.0,
            False,
            "the topic documents is not there",
            "create it, or set missing",
        ),
        (View(0.0, missing=("a", "b")), 2.0, True, "the topics a, b are not there", ""),
        (View(0.0, partitions=(HELD,)), 61.0, True, "1 held, 3 records behind", ""),
    ],
)
def test_partitions_say_what_is_missing(
    view: View,
    waited: float,
    ok: bool,  # noqa: FBT001 - a parameter of the test
    detail: str,
    cure: str,
) -> None:
    """A topic that is not there is named; what is ok has no cure; having none is no fault for a while."""
    check = health.partitions("cms:partitions", config_of(), view, waited)
    assert (check.ok, check.detail, check.cure[: len(cure) or None]) == (ok, detail, cure)


def test_the_cure_fits_the_configuration() -> None:
    """Who has set missing_topics is not told to; a pattern is named as one."""
    created = config_of(missing_topics="create")
    assert "start the daemon again" in health.partitions("p", created, View(0.0, missing=("documents",)), 61.0).cure
    pattern = config_of(topic_pattern="cms-.*")
    assert health.partitions("p", pattern, View(0.0), 61.0).cure.startswith("is there a topic that matches cms-.*")


def test_options_of_the_client_may_come_from_the_environment() -> None:
    """There they are texts."""
    found = config_of(consumer={"session_timeout_ms": "6000", "check_crcs": "False", "client_rack": "a"})
    assert found.consumer == {"session_timeout_ms": 6000, "check_crcs": False, "client_rack": "a"}


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"topics": ("a",), "topic_pattern": "b"}, "topics and topic_pattern are both set; keep one"),
        ({"topics": ()}, "name topics, or a topic_pattern for them"),
        ({"consumer": {"enable_auto_commit": True}}, "enable_auto_commit cannot be set: "),
        ({"consumer": {"auto_offset_reset": "latest"}}, "the source's own key for it is start"),
        ({"consumer": {"ssl_cafile": "x"}}, "the source's own key for it is tls"),
        ({"consumer": {"security_protocol": "SSL"}}, "the source's own key for it is tls and sasl"),
        ({"consumer": {"fetch_max_wait": 1}}, "kafka-python has no option fetch_max_wait; known: "),
        ({"consumer": {"session_timeout_ms": "6s"}}, "has to be a whole number of milliseconds, and '6s' is not"),
        ({"consumer": {"max_poll_records": True}}, "max_poll_records has to be a whole number, and True is not"),
        ({"consumer": {"check_crcs": "perhaps"}}, "check_crcs has to be true or false, and 'perhaps' is not"),
        ({"consumer": {"client_rack": 1}}, "client_rack has to be a text, and 1 is not"),
    ],
)
def test_what_is_refused_says_what_to_set(named: dict[str, Any], message: str) -> None:
    """The message names the two keys that contradict each other, or the key of ours for an option of the client's."""
    with pytest.raises(ValueError, match=r"validation error") as refused:
        Config(**{"bootstrap_servers": ("x:1",), "group_id": "g", "collection": "c", "topics": ("a",), **named})
    assert message in str(refused.value)
