"""Kafka topics: records are events of documents, in order for each document, and committed when they are done.

The work is in ``_kafka``: ``member`` is the loop of the thread that owns the consumer, ``holdings`` what becomes of
partitions in a rebalance, ``tenure`` what allows a record to be written, ``tracker`` what may be committed;
``_values`` reads the records. Several daemons with one configuration are one group, and share the partitions.

A parked record stays uncommitted: the copy in the retry queue is a cache, withdrawn when its partition goes to another
member, who gets it from the topic. So a document's record is never lost with a member's disk, and never done twice
for good.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from ingestd.errors import ConfigError, DocumentError, UnavailableError
from ingestd.model import Check, Event, Failure, Parked, Priority, Stage, Verdict, Version
from ingestd.sources._kafka import health
from ingestd.sources._kafka.events import event_of, record_of
from ingestd.sources._kafka.security import SaslConfig, TlsConfig  # noqa: TC001 - pydantic reads the annotations
from ingestd.sources._kafka.start import Start  # noqa: TC001 - pydantic reads the annotation
from ingestd.sources._values.config import JsonFormat, SchemaRegistry, ValueFormat, decoder
from ingestd.sources._values.decoded import ValueLimits

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from ingestd.metrics import SourceMetrics
    from ingestd.model import Again, DeadLetter, Lease, Outcome, Record
    from ingestd.ports import Intake, LetterTopic, SourceScope
    from ingestd.sources._kafka.tenure import Tenure

TopicName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9._-]{1,249}$")]
"""What Kafka takes for a topic's name."""


class NewTopics(BaseModel):
    """What topics that are not there are made with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    partitions: int = Field(1, ge=1, description="Partitions of a topic.")
    replication_factor: int = Field(-1, ge=-1, description="Copies of each; -1: the brokers' own default.")


class Config(BaseModel):
    """Topics whose records are events of documents."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    shared: ClassVar[bool] = True
    """Several daemons may run it at once: what it fed may have been written by any of them."""

    bootstrap_servers: tuple[str, ...] = Field(min_length=1, description="HOST:PORT of some brokers.")
    collection: str = Field(min_length=1, description="The collection that the documents go to.")
    topics: tuple[TopicName, ...] = Field((), description="The topics.")
    topic_pattern: str | None = Field(None, description="In place of topics: a regular expression for their names.")
    group_id: str = Field(min_length=1, description="The consumer group: its members share the partitions.")
    group_instance_id: str | None = Field(
        None, min_length=1, description="Makes this a static member: one that may be away for a session time-out."
    )
    start: Start = Field(
        "earliest",
        description='Where a group begins: earliest, latest, a time (RFC 3339), or offsets ({"topic/0" = 5}).',
    )
    format: ValueFormat = Field(JsonFormat(), description="How records are read.")
    id_from: Literal["auto", "value", "key"] = Field(
        "auto", description="Where ids are: auto refuses a value's id and a key that differ."
    )
    schema_registry: SchemaRegistry | None = Field(None, description="For formats whose schemas are in one.")
    max_value_bytes: int = Field(8 * 1024 * 1024, ge=1, description="The largest value; a larger one is refused.")
    assignment: Literal["eager", "cooperative"] = Field(
        "eager", description="How partitions move: all are given out anew, or only those that move."
    )
    isolation: Literal["read_committed", "read_uncommitted"] = Field(
        "read_committed", description="Whether records of transactions that were aborted are left out."
    )
    missing_topics: Literal["wait", "create"] = Field("wait", description="What is done about topics not there.")
    new_topics: NewTopics = Field(NewTopics(), description="What topics are created with.")
    commit_seconds: float = Field(1.0, gt=0, le=60, description="Seconds between two commits.")
    max_lag: int = Field(
        20_000, ge=1, description="The most offsets of a partition from the first that is not done to the last taken."
    )
    max_parked_seconds: float = Field(
        7200.0, gt=0, description="How long a record may be tried again before it is a dead letter whatever is left."
    )
    grace_seconds: float = Field(60.0, gt=0, description="How long having no partition is no fault.")
    tls: TlsConfig | None = Field(None, description="TLS to the brokers.")
    sasl: SaslConfig | None = Field(None, description="Credentials for the brokers.")
    backfill: bool = Field(
        False, description="Whether its documents give way to live ones, and to those tried again, of other sources."
    )
    dead_letter_topic: TopicName | None = Field(
        None, description="A topic that dead letters go to, in place of the state."
    )
    consumer: dict[str, bool | int | float | str | tuple[int, ...]] = Field(
        default_factory=dict, description="Options of kafka-python's consumer, such as session_timeout_ms."
    )

    @field_validator("topic_pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"is no regular expression: {error}") from error
        return pattern

    @field_validator("consumer")
    @classmethod
    def _passed_on(cls, options: dict[str, Any]) -> dict[str, Any]:
        from ingestd.sources._kafka.connection import fitting, refused  # noqa: PLC0415 - imports the client

        for name in options:
            why = refused(name)
            if why is not None:
                raise ValueError(why)
        return {name: fitting(name, value) for name, value in options.items()}

    @model_validator(mode="after")
    def _topics_or_pattern(self) -> Config:
        if self.topics and self.topic_pattern is not None:
            raise ValueError("topics and topic_pattern are both set; keep one")
        if not self.topics and self.topic_pattern is None:
            raise ValueError("name topics, or a topic_pattern for them")
        if self.missing_topics == "create" and not self.topics:
            raise ValueError("missing_topics = 'create' needs topics: a pattern names none")
        if self.dead_letter_topic is not None and self.dead_letter_topic in self.topics:
            raise ValueError(f"dead_letter_topic: {self.dead_letter_topic} is read too, and would feed itself")
        self._letters_are_not_read()
        return self

    def _letters_are_not_read(self) -> None:
        # As the client does: from the name's beginning, and not to its end.
        pattern, letters = self.topic_pattern, self.dead_letter_topic
        if pattern is not None and letters is not None and re.match(pattern, letters):
            raise ValueError(
                f"dead_letter_topic: {letters} matches topic_pattern ({pattern}), is read too, and would feed itself; "
                f"name it otherwise, or leave it out of the pattern, as in (?!{re.escape(letters)}$)(?:{pattern})"
            )

    def reads(self, topic: str) -> bool:
        """Return whether a topic is among those that are read."""
        if self.topic_pattern is not None:
            return re.match(self.topic_pattern, topic) is not None
        return topic in self.topics

    def clash(self, other: BaseModel) -> str | None:
        """Return why this source must not run beside another one: as members of one group they share the records.

        Nothing is asked here: a cluster by two names, or two patterns, may be the same or not. Names count as they are
        written, and patterns as if they met.
        """
        if not isinstance(other, Config) or other.group_id != self.group_id:
            return None
        if not set(self.bootstrap_servers) & set(other.bootstrap_servers):
            return None
        if self.group_instance_id is not None and self.group_instance_id == other.group_instance_id:
            return (
                f"both are {self.group_instance_id!r} in the group {self.group_id!r}, and would throw each other out: "
                "give each a group_instance_id of its own"
            )
        both_patterns = self.topic_pattern is not None and other.topic_pattern is not None
        if both_patterns or any(map(self.reads, other.topics)) or any(map(other.reads, self.topics)):
            return (
                f"both are members of the group {self.group_id!r} and read the same topics, so each record would come "
                "to one of them alone: give each a group_id of its own"
            )
        return None

    def build(self, name: str, scope: SourceScope) -> KafkaSource:
        """Return the source. Nothing is connected before ``run``."""
        return KafkaSource(name, self, scope)


class KafkaSource:
    """The source. See the module for how it works, and ``ports.Source`` for what each method promises.

    Args:
        name: The source's name.
        config: The settings.
        scope: What a source may know of the rest.
    """

    def __init__(self, name: str, config: Config, scope: SourceScope) -> None:
        from ingestd.sources._kafka.member import Member  # noqa: PLC0415 - imports the client

        self.name = name
        self.collection = config.collection
        self._config = config
        self._priority = Priority.BACKFILL if config.backfill else Priority.LIVE
        self._clock = scope.clock
        self._shared = scope.shared
        self._fingerprint = scope.fingerprint(Verdict.DEAD_LETTERED)
        limits = ValueLimits(max_value_bytes=config.max_value_bytes, max_bytes=scope.max_bytes)
        registry = config.schema_registry
        self._registry = None if registry is None else registry.build(name, scope.clock)
        self._decoder = decoder(
            config.format, id_from=config.id_from, source=name, limits=limits, registry=self._registry
        )
        self._member = Member(name, config, scope.clock, self._live)
        self._exported = self._member.view

    def run(self, intake: Intake, *, once: bool) -> None:
        """Hand in events until ``intake`` raises Stopped, or, with ``once``, what is there now, until it is settled."""
        from ingestd.sources._kafka.topics import create_missing  # noqa: PLC0415 - imports the client

        if self._config.missing_topics == "create":
            create_missing(self.name, self._config, intake)
        try:
            self._member.run(intake, once=once)
        finally:
            self._decoder.close()
            if self._registry is not None:
                self._registry.close()

    def settled(self, outcomes: Sequence[Outcome]) -> None:
        """Take note of outcomes, for the consumer's thread."""
        self._member.settled(outcomes)

    def revive(self, parked: Parked | DeadLetter) -> Event | None:
        """Return the event of a record, made from the copy that was kept of it, or read again from its topic.

        Raises:
            UnavailableError: Its partition was given back just now, or a broker or the registry does not answer.
        """
        tenure_id = parked.tenure if isinstance(parked, Parked) else ""
        tenure = self._member.tenure(tenure_id) if tenure_id else None
        if tenure_id and tenure is None:
            raise UnavailableError(f"kafka:{self.name}", f"{parked.position} is not ours any more")
        record = parked.record or self._read_again(parked.position)
        if record is None:
            return self._gone(parked)
        if tenure is None:
            return self._tried_again(parked, record)
        expired = self._member.is_expired(parked.position)
        return event_of(
            record,
            self._decoder,
            source=self.name,
            collection=self.collection,
            domain=tenure.domain,
            lease=tenure,
            attempt=parked.attempt if isinstance(parked, Parked) else 1,
            first_failed_at=parked.first_failed_at,
            failure=parked.failure if expired else None,
            id_from=self._config.id_from,
        )

    def checks(self) -> Sequence[Check]:
        """Say how the source is."""
        member, config = self._member, self._config
        if member.worked_off:
            return [Check(f"{self.name}:partitions", ok=True, detail="all that was there is done")]
        view, silence = member.view, member.silence()
        waited = self._clock.monotonic() - view.since
        return [
            health.broker(f"{self.name}:broker", config, view, silence, waited),
            health.partitions(f"{self.name}:partitions", config, view, waited),
            *self._check_registry(),
        ]

    def probe(self) -> Sequence[Check]:
        """Say whether the source could start. Changes nothing.

        Raises:
            ConfigError: The brokers refuse us.
        """
        from ingestd.sources._kafka.topics import probe  # noqa: PLC0415 - imports the client

        checks = list(probe(self.name, self._config))
        return checks if self._registry is None else [*checks, self._registry.check()]

    def export(self, metrics: SourceMetrics) -> None:
        """Bring the source's metrics up to date."""
        now, last = self._member.view, self._exported
        kafka, source = metrics.kafka, self.name
        kafka.partitions.labels(source=source).set(len(now.partitions))
        kafka.paused.labels(source=source).set(now.paused)
        kafka.rebalances.labels(source=source).inc(now.rebalances - last.rebalances)
        kafka.refused_commits.labels(source=source).inc(now.refused_commits - last.refused_commits)
        for held in now.partitions:
            labels = (source, held.partition.topic, str(held.partition.partition))
            kafka.watermark_age_seconds.labels(*labels).set(held.oldest_seconds)
            if held.lag is not None:
                kafka.lag.labels(*labels).set(held.lag)
        for gone in {one.partition for one in last.partitions} - {one.partition for one in now.partitions}:
            for gauge in (kafka.lag, kafka.watermark_age_seconds):
                with suppress(KeyError):
                    gauge.remove(source, gone.topic, str(gone.partition))
        self._exported = now

    def absent(self) -> frozenset[str]:
        """Refuse: a topic says itself what is deleted."""
        raise ConfigError(f"sources.{self.name}: a Kafka source holds no deletes back: its topic says what is deleted")

    def survey(self) -> None:
        """Return nothing: what a topic says of a document may have been dropped long ago."""

    def look(self) -> int:
        """Return that there is nothing to look at."""
        return 0

    def behind(self, documents: Collection[str], look: int) -> frozenset[str]:
        """Return that nothing is waited for: what a topic has yet to bring is no version that a document has."""
        del documents, look
        return frozenset()

    def again(self, versions: Mapping[str, Version]) -> Iterator[Again]:
        """Yield the records that made these versions, as far as their topics still have them."""
        from ingestd.sources._kafka.recovery import recovered  # noqa: PLC0415 - imports the client

        return recovered(self.name, self._config, versions)

    def confirm(self) -> int:
        """Return that nothing was held."""
        return 0

    def letter_topic(self) -> LetterTopic | None:
        """Return the dead letters' topic, where one is configured."""
        from ingestd.sources._kafka.letter_topic import LetterTopic  # noqa: PLC0415 - imports the client

        if self._config.dead_letter_topic is None:
            return None
        return LetterTopic(self.name, self._config, self._fingerprint, self._clock.time)

    def _live(self, found: Any, tenure: Tenure) -> Event:  # noqa: ANN401 - kafka-python has no types
        return event_of(
            record_of(found),
            self._decoder,
            source=self.name,
            collection=self.collection,
            domain=tenure.domain,
            lease=tenure,
            id_from=self._config.id_from,
            priority=self._priority,
        )

    def _check_registry(self) -> Sequence[Check]:
        if self._registry is None:
            return ()
        waits_for = self._member.view.waits_for
        cure = "records wait, and go on by themselves once it answers" if waits_for else ""
        return (Check(f"{self.name}:registry", ok=waits_for is None, detail=waits_for or "answers", cure=cure),)

    def _tried_again(self, parked: Parked | DeadLetter, record: Record) -> Event | None:
        """Return the event of a letter that an operator has tried again; None: its topic brings it.

        Where others write the collection too, only whoever holds a partition may write what it is about. What is in no
        topic of ours any more is nobody else's.
        """
        from ingestd.sources._kafka.rewriting import write_again  # noqa: PLC0415 - imports the client
        from ingestd.sources._kafka.tenure import Borrowed, Loan  # noqa: PLC0415 - beside the client

        lease: Lease = Loan()
        if self._shared and self._config.reads(record.topic):
            held = self._member.holder(record.topic, record.partition)
            if held is None:
                try:
                    write_again(self.name, self._config, record, parked.version or Version(record.offset, ""))
                except DocumentError as error:
                    return self._refused(parked, record, str(error))
                return None
            lease = Borrowed(held)
        event = event_of(
            record,
            self._decoder,
            source=self.name,
            collection=self.collection,
            domain="",
            lease=lease,
            attempt=parked.attempt if isinstance(parked, Parked) else 1,
            first_failed_at=parked.first_failed_at,
            id_from=self._config.id_from,
            again=True,
        )
        return event if parked.version is None else _versioned(event, parked)

    def _read_again(self, position: str) -> Record | None:
        """Return a record of which no copy was kept, from its topic; None: it is not there any more."""
        from ingestd.sources._kafka.topics import read_again  # noqa: PLC0415 - imports the client

        return read_again(self.name, self._config, position)

    def _gone(self, parked: Parked | DeadLetter) -> Event:
        return self._refused(
            parked,
            None,
            f"{parked.position}: its value was too large to be kept, and the topic does not have it any more; "
            f"before that: {parked.failure.message}",
        )

    def _refused(self, parked: Parked | DeadLetter, record: Record | None, message: str) -> Event:
        """Return an event that cannot be tried: a dead letter at once."""
        failure = Failure(Stage.SOURCE, "DocumentError", message)
        return Event(
            parked.key,
            parked.op,
            self.name,
            parked.position,
            None,
            version=parked.version,
            record=record,
            fault=failure,
        )


def _versioned(event: Event, parked: Parked | DeadLetter) -> Event:
    """Give an event the version that it had when it failed: its partition may not be held here now."""
    return replace(event, version=parked.version)
