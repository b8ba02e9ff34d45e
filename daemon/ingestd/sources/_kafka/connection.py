"""The consumer of kafka-python, set up as this daemon needs it, and what it knows of its place in the group.

Owns every look behind the client's public face, and ``pyproject.toml`` holds the client to the minor version that they
were read in. They are: when a heartbeat was sent and answered, and whether any are sent; when the group was asked for
our part, and gave it; that a rebalance is seen through; what is known of cluster and topics (ids, partitions, leaders,
those that are hidden from us), when it was last said, and that it is asked for now; what it could not read; what is
committed of many partitions at once; sleeping in the event loop; and that no topics are created.
"""

from __future__ import annotations

import math
import threading
import time
from typing import TYPE_CHECKING, Any, TypeVar

from kafka import KafkaConsumer, KafkaProducer
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.errors import KafkaError
from kafka.structs import MemberState

from ingestd.errors import UnavailableError
from ingestd.sources._kafka.errors import raise_if_refused, told
from ingestd.sources._kafka.preflight import preflight
from ingestd.sources._kafka.security import client_options
from ingestd.sources._kafka.tenure import boot_time

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from kafka.structs import OffsetAndMetadata, TopicPartition

    from ingestd.sources.kafka import Config

C = TypeVar("C", KafkaConsumer, KafkaProducer)

BOOTSTRAP_SECONDS = 5.0
"""Seconds for the first answer of a broker: beyond it the source says that it is away, and tries again."""
METADATA_SECONDS = 30.0
"""Seconds after which topics are looked at again: new ones, and partitions that were added."""
LONGEST_SESSION = 45.0
"""Seconds: where no session is known it is taken for this one, Kafka's own default."""
HEARD_SECONDS = 2.0
"""Seconds for the answer to a heartbeat, and for the broker to notice what it is to say by it."""
PATIENCE = 15.0
"""Seconds beyond the session in which the client may find its way back by itself."""
OWN: Mapping[str, str] = {
    "allow_auto_create_topics": "missing_topics",
    "auto_commit_interval_ms": "commit_seconds",
    "auto_offset_reset": "start",
    "bootstrap_servers": "bootstrap_servers",
    "default_offset_commit_callback": "",
    "enable_auto_commit": "",
    "group_id": "group_id",
    "group_instance_id": "group_instance_id",
    "isolation_level": "isolation",
    "kafka_client": "",
    "key_deserializer": "format",
    "metric_reporters": "",
    "partition_assignment_strategy": "assignment",
    "security_protocol": "tls and sasl",
    "selector": "",
    "socket_options": "",
    "value_deserializer": "format",
}
"""Client options that cannot be passed on, and the keys that they have here; none where they cannot be set at all."""


def passed_on() -> frozenset[str]:
    """Return the names of the client options that a configuration may set."""
    known = KafkaConsumer.DEFAULT_CONFIG.keys() - OWN.keys()
    return frozenset(name for name in known if not name.startswith(("ssl_", "sasl_")))


def refused(option: str) -> str | None:
    """Return why a client option cannot be passed on, and what to set in its place; None: it can."""
    own = OWN.get(option)
    if option.startswith(("ssl_", "sasl_")):
        own = "tls" if option.startswith("ssl_") else "sasl"
    if own:
        return f"{option} cannot be set here; the source's own key for it is {own}"
    if own is not None:
        return f"{option} cannot be set: the daemon has its own way; take it out"
    if option not in passed_on():
        return f"kafka-python has no option {option}; known: {', '.join(sorted(passed_on()))}"
    return None


def fitting(option: str, value: Any) -> Any:  # noqa: ANN401 - whatever the client's option takes
    """Return the value of a client option as what its default is: a number that came from the environment is text.

    The client itself takes whatever it is given, and fails with it later.

    Raises:
        ValueError: It is something else.
    """
    default = KafkaConsumer.DEFAULT_CONFIG[option]
    if isinstance(default, bool):
        kind, known = "true or false", {"true": True, "false": False}
        value = known.get(str(value).lower(), value)
        fits = isinstance(value, bool)
    elif isinstance(default, int | float):
        kind = "a whole number" + " of milliseconds" * option.endswith("_ms")
        if isinstance(value, str) and value.strip().isdecimal():
            value = int(value)
        fits = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    elif isinstance(default, str):
        kind, fits = "a text", isinstance(value, str)
    else:
        return value
    if not fits:
        raise ValueError(f"{option} has to be {kind}, and {value!r} is not")
    return value


def options(name: str, config: Config) -> dict[str, Any]:
    """Return the client's options for a member of the group."""
    chosen: dict[str, Any] = {
        "client_id": f"ingestd-{name}",
        "bootstrap_timeout_ms": int(BOOTSTRAP_SECONDS * 1000),
        "metadata_max_age_ms": int(METADATA_SECONDS * 1000),
        **config.consumer,
    }
    session = chosen.get("session_timeout_ms")
    if session is not None:
        chosen.setdefault("heartbeat_interval_ms", min(3000, int(session) // 3))
    if config.assignment == "cooperative":
        chosen["partition_assignment_strategy"] = [CooperativeStickyAssignor]
    if config.group_instance_id is not None:
        chosen["group_instance_id"] = config.group_instance_id
    return {
        **chosen,
        **base_options(config),
        "group_id": config.group_id,
        "isolation_level": config.isolation,
        # Where nothing is committed ``start`` decides; where what is committed is gone, the next that is there.
        "auto_offset_reset": "earliest",
        "enable_auto_commit": False,
    }


def base_options(config: Config) -> dict[str, Any]:
    """Return the options that every client of these brokers needs."""
    return {"bootstrap_servers": list(config.bootstrap_servers), **client_options(config.tls, config.sasl)}


def plain_options(name: str, config: Config) -> dict[str, Any]:
    """Return the options of a client that is in no group; ``name`` is what the brokers' logs call it."""
    return {
        "client_id": f"ingestd-{name}",
        "bootstrap_timeout_ms": int(BOOTSTRAP_SECONDS * 1000),
        **base_options(config),
    }


def greet(name: str, config: Config) -> None:
    """Return if a broker takes us, where that has to be found out before the client is made.

    With TLS or SASL it swallows every refusal, and on a handshake that nobody answers it waits for ever.

    Raises:
        ConfigError: The brokers refuse us.
        UnavailableError: None answers.
    """
    if config.tls is not None or config.sasl is not None:
        chosen = plain_options(name, config)
        preflight(config.bootstrap_servers, chosen, BOOTSTRAP_SECONDS, dependency=f"kafka:{name}")


def reader(name: str, config: Config) -> KafkaConsumer:
    """Return a consumer in no group: it commits nothing, and is told what it reads.

    Raises:
        KafkaError: No broker answers, or they refuse us.
        ConfigError, UnavailableError: As ``greet``.
    """
    greet(name, config)
    options = {"group_id": None, "enable_auto_commit": False, "auto_offset_reset": "earliest"}
    return creating_none(KafkaConsumer(**options, **plain_options(name, config)))


def writer(name: str, config: Config, answer_ms: int) -> KafkaProducer:
    """Return a producer of single records of any size, which says of each whether the brokers took it.

    Args:
        name: For the brokers' logs.
        config: The source's.
        answer_ms: For a broker's answer.

    Raises:
        KafkaError: No broker answers, or they refuse us.
        ConfigError, UnavailableError: As ``greet``.
    """
    greet(name, config)
    options = {
        "acks": "all",
        # An idempotent producer is done for after one record that is too large: every later send fails.
        "enable_idempotence": False,
        "max_in_flight_requests_per_connection": 1,
        # What came compressed fits again only so. Every broker takes gzip; zstd came late.
        "compression_type": "gzip",
        # What is too large is for the brokers to say.
        "max_request_size": 1 << 30,
        "max_block_ms": answer_ms,
        "request_timeout_ms": answer_ms,
        "delivery_timeout_ms": 2 * answer_ms,
    }
    return creating_none(KafkaProducer(**options, **plain_options(name, config)))


def creating_none(client: C) -> C:
    """Return a client that is made to create no topic by asking for it, as brokers do by default.

    It has an option for that (``allow_auto_create_topics``), and passes it on to nobody.
    """
    cluster = client._cluster if isinstance(client, KafkaConsumer) else client._metadata  # noqa: SLF001 - see above
    cluster.config["allow_auto_create_topics"] = False
    return client


def connect(name: str, config: Config) -> KafkaConsumer:
    """Return a consumer that has reached a broker.

    Raises:
        ConfigError: The brokers refuse us, or an option is wrong.
        UnavailableError: No broker answers.
    """
    chosen = options(name, config)
    greet(name, config)
    try:
        return creating_none(KafkaConsumer(**chosen))
    except (KafkaError, OSError) as error:
        raise_if_refused(name, error)
        preflight(config.bootstrap_servers, chosen, BOOTSTRAP_SECONDS, dependency=f"kafka:{name}")
        servers = ", ".join(config.bootstrap_servers)
        raise UnavailableError(f"kafka:{name}", f"no broker answers at {servers}: {told(error)}") from error


class Group:
    """What a consumer knows of its place in the group (``tenure.Membership``). Safe to call from any thread."""

    def __init__(self, consumer: KafkaConsumer) -> None:
        self._consumer = consumer
        self.session_seconds: float = consumer.config["session_timeout_ms"] / 1000
        self._beat_seconds: float = consumer.config["heartbeat_interval_ms"] / 1000
        self._made_at = boot_time()
        self._heard_at: float | None = None
        self._given_at: float | None = None
        self._lock = threading.Lock()
        self._listen(consumer._coordinator)  # noqa: SLF001 - see above

    def _listen(self, coordinator: Any) -> None:  # noqa: ANN401 - kafka-python has no types
        """Take note of what the group answers. It counts from when it was asked, so that is what is kept.

        The client tells nobody, and its own notes are on a clock that stands still while the machine sleeps. A process
        that was stopped, or slept, in between finds an answer when it wakes that says nothing of now.
        """
        beats = coordinator.heartbeat
        sent, answered = beats.sent_heartbeat, beats.received_heartbeat
        let_in, given = coordinator._process_join_group_response, coordinator._on_join_complete_async  # noqa: SLF001 - see above
        asked: dict[str, float] = {}

        def sent_heartbeat() -> None:
            asked["heartbeat"] = boot_time()
            sent()

        def received_heartbeat() -> None:
            answered()
            self._hear(asked["heartbeat"])

        def process_join_group_response(*arguments: Any) -> None:  # noqa: ANN401 - as above
            let_in(*arguments)
            asked["part"] = boot_time()  # which is asked for now, of the generation that we have just been let into

        async def on_join_complete_async(*arguments: Any) -> None:  # noqa: ANN401 - as above
            # Here, and not in our own callback: that is not called where nothing is added to what we have.
            self._hear(asked["part"])
            self._given_at = boot_time()
            await given(*arguments)

        beats.sent_heartbeat, beats.received_heartbeat = sent_heartbeat, received_heartbeat
        coordinator._process_join_group_response = process_join_group_response  # noqa: SLF001 - as above
        coordinator._on_join_complete_async = on_join_complete_async  # noqa: SLF001 - as above

    def rebalancing(self) -> bool:
        """Return whether the group is deciding who owns what."""
        return bool(self._consumer.group_metadata().state == MemberState.REBALANCING)

    def see_through(self) -> None:
        """Have a rebalance that is under way seen through by the next poll.

        A join that outlasts its poll is gone on with by the next one only if the client still sees why it joined.
        Where that was a change of the topics or of their partitions it does not, since it has told the group of the
        change: it would then wait for ever, without a heartbeat.
        """
        if self.rebalancing():
            self._consumer._coordinator.request_rejoin()  # noqa: SLF001 - nothing else says it

    def generation(self) -> int:
        """Return the number of the group's last rebalance; -1: we are not in the group."""
        return int(self._consumer.group_metadata().generation_id)

    def heartbeat_age(self) -> float | None:
        """Return the seconds since a heartbeat was answered; None: we are not in the group."""
        heard = self._heard_at
        return None if heard is None or self.generation() < 0 else boot_time() - heard

    def silence(self) -> tuple[float, float]:
        """Return the seconds without an answer of the group, or since we first asked, and how many it takes us for."""
        silent = boot_time() - max(self._made_at, self._heard_at or self._made_at)
        return silent, self.session_seconds if self.generation() >= 0 else math.inf

    def heard_at(self) -> float | None:
        """Return when the group last answered, by ``boot_time``; None: it has not yet."""
        return self._heard_at

    def has_decided(self) -> bool:
        """Return whether the group gave partitions out so long ago that whoever was given some is alive.

        A dead member keeps its own for a session, and we hear of its end by the heartbeat after that.
        """
        if self._given_at is None or self.rebalancing():
            return False
        return boot_time() - self._given_at > self.session_seconds + self._beat_seconds + HEARD_SECONDS

    def excuse(self, at: float) -> None:
        """Take note that up to then the group was asked nothing, for lack of a topic: that is no silence of it."""
        self._made_at = max(self._made_at, at)

    def fenced(self) -> bool:
        """Return whether another member has taken our static id over: the client then only stops its heartbeats."""
        silent, session = self.silence()
        stable = self._consumer.group_metadata().state == MemberState.STABLE
        return silent > session and stable and not self._consumer._coordinator._heartbeat_enabled  # noqa: SLF001 - see above

    def gone(self) -> bool:
        """Return whether we are out of the group by all that we know, and the client is not joining it again.

        There are cases in which it sends no heartbeat any more and does not notice: once the task that sends them has
        failed, nothing starts another one before the next rebalance, and of that it would hear by a heartbeat.
        """
        silent, session = self.silence()
        return silent > min(session, LONGEST_SESSION) + PATIENCE and not self.rebalancing()

    def _hear(self, at: float) -> None:
        with self._lock:
            self._heard_at = at if self._heard_at is None else max(self._heard_at, at)


def drop_unreadable(consumer: KafkaConsumer) -> None:
    """Have what could not be read asked for again: the client keeps it, and its next poll would never come to an end.

    It goes on taking from an iterator that has failed and gives nothing any more: a batch whose checksum is wrong, or
    whose codec is not known. What came before it has been handed to us.
    """
    fetcher = consumer._fetcher  # noqa: SLF001 - see above
    if fetcher._next_partition_records is not None:  # noqa: SLF001 - see above
        fetcher._next_partition_records.drain()  # noqa: SLF001 - see above
        fetcher._next_partition_records = None  # noqa: SLF001 - see above


def give_back(consumer: KafkaConsumer) -> None:
    """Have records handed to us that the client put aside for a pause: to be called before each poll.

    It takes one partition's at a time out of what it put aside, and only while nothing is in the place of what it reads
    next. What was read to its end stays in that place until something else comes: where several partitions were put
    aside (a rebalance in the middle of a pause), and the rest have no more to bring, nothing would ever come of them.
    """
    fetcher = consumer._fetcher  # noqa: SLF001 - see above
    if not fetcher._next_partition_records:  # noqa: SLF001 - see above
        fetcher._next_partition_records = None  # noqa: SLF001 - see above


def topic_id(consumer: KafkaConsumer, topic: str) -> str | None:
    """Return the id that a topic was given when it was made; None: it is not known, or brokers give none."""
    found = consumer._cluster.topic_id(topic)  # noqa: SLF001 - nothing else says it
    return str(found) if found is not None and found.int else None


def denied(consumer: KafkaConsumer) -> frozenset[str]:
    """Return the topics of ours that the brokers hide from us: the client logs that, and goes on without them."""
    return frozenset(consumer._cluster.unauthorized_topics)  # noqa: SLF001 - nothing else says it


def answered_at(consumer: KafkaConsumer) -> float:
    """Return when brokers last said what topics there are, by ``boot_time``."""
    said: float = consumer._cluster._last_successful_refresh_ms / 1000  # noqa: SLF001 - nothing else says it
    return boot_time() - (time.monotonic() - said)


def cluster_id(consumer: KafkaConsumer) -> str | None:
    """Return the id that the brokers' cluster was given; None: it is not known, or they give none."""
    found: str | None = consumer._cluster.cluster_id  # noqa: SLF001 - nothing else says it
    return found or None


def partition_count(consumer: KafkaConsumer, topic: str) -> int | None:
    """Return the number of a topic's partitions, as far as is known without asking; None: it is not known now."""
    found = consumer._cluster.partitions_for_topic(topic)  # noqa: SLF001 - the public one asks the brokers, and waits
    return len(found) if found else None


def committed(
    consumer: KafkaConsumer, partitions: Iterable[TopicPartition], seconds: float
) -> Mapping[TopicPartition, OffsetAndMetadata]:
    """Return what the group has committed of some partitions; those without a commit are left out.

    Raises:
        KafkaError: No answer within the seconds, or a refusal.
    """
    coordinator = consumer._coordinator  # noqa: SLF001 - the public one asks for one partition at a time
    found: Mapping[TopicPartition, OffsetAndMetadata] = coordinator.fetch_committed_offsets(
        list(partitions), timeout_ms=seconds * 1000
    )
    return found


def leader(consumer: KafkaConsumer, partition: TopicPartition) -> int | None:
    """Return the broker that leads a partition, as far as is known without asking; None: none does, or not known."""
    found = consumer._cluster.leader_for_partition(partition)  # noqa: SLF001 - nothing else says it
    return None if found is None or found < 0 else int(found)


def refresh(consumer: KafkaConsumer) -> None:
    """Have the client ask at once what topics and partitions there are, and not wait for it."""
    consumer._cluster.request_update()  # noqa: SLF001 - nothing else does


async def pause_loop(consumer: KafkaConsumer, seconds: float) -> None:
    """Sleep in the client's event loop, where its heartbeats go on meanwhile."""
    await consumer._net.sleep(seconds)  # noqa: SLF001 - it has a loop of its own, not asyncio's
