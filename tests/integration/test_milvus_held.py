"""What a sink reads back of documents: ids of every kind, columns of every type, documents of very many rows."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest
from tests.fixtures.milvus import DIMENSION, articles, sample
from tests.integration.test_milvus_requests import Refusals, refusals

from ingestd.errors import UnavailableError
from ingestd.milvus.client import Config, Connection
from ingestd.milvus.expression import one_of
from ingestd.milvus.schema import FieldConfig, VectorConfig, VectorSpec, wanted
from ingestd.milvus.verdict import Request
from ingestd.model import Held, Tombstone, VectorKind, Version
from ingestd.sinks import milvus as sinks

if TYPE_CHECKING:
    from tests.fixtures.milvus import Target

    from ingestd.model import Json, Metadata, Row

__all__ = ["refusals"]

IDS = [
    "inbox/a.txt",
    "",
    " ",
    "a ",
    "a\"b'c",
    "'",
    '"',
    "a\\b",
    "a\\",
    "\\",
    "\\\\",
    '\\"',
    "\\n",
    "a\\nb",
    "\\x41",
    "\\101",
    "\\u4e2d",
    "\\文",
    "\\u文",
    "a\\文\"b'",
    "a\nb",
    "a\rb",
    "\r\n",
    "a\tb",
    "中\n文\t中\\n",
    '中"文',
    "100%_%s%d%%",
    "a%",
    "a_",
    "{x}",
    "{{x}}{0}",
    '$meta["a"]',
    '"] or id != "',
    *(f"c{chr(n)}d" for n in (*range(9), 11, 12, *range(14, 32), 127, *range(128, 160))),
    "\x00",
    "\u2028\u2029",
    "\ufeff",
    "\uffff\ufffe",
    "\ue000\ufffd",
    "\U0010ffff",
    "😀🏳️‍🌈",
    "文档/中文.txt",
    "𠀀𠮷野",
    "𠀀0",
    "々〇⼀⺀",
    "문서",
    "مستند/שלום",
    "\u202eabc",
    "e\u0301\u0323",
    "é",
    "e\u0301",
    "x" * 4096,
    "é" * 2048,
    "中" * 1365,
    "😀" * 1024,
    "\n" * 4096,
    "\\" * 4096,
    '"' * 4096,
    "\x01" * 4096,
]
"""What a Kafka record or a file's name can bring."""


def test_documents_are_found_whatever_their_ids_hold(target: Target) -> None:
    """Each of these ids finds its own rows and its own tombstone, and nobody else's."""
    assert len(set(IDS)) == len(IDS)
    sink = sinks.MilvusSink(target.connection, target.wanted("odd_ids"), shared=True)
    sink.prepare()
    rows = [target.row(n, document_id=document, chunk_index=0) for n, document in enumerate(IDS)]
    buried = {document: Version(n, "topic/0") for n, document in enumerate(IDS)}
    expected = {
        row.document_id: Held(
            {row.id: row.digest()},
            frozenset({version}),
            row.source,
            buried[row.document_id],
            made={row.id: version},
            firsts=frozenset({version}),
        )
        for row in rows
        for version in (Version(row.version, row.domain),)
    }
    sink.upsert(rows)
    sink.bury([Tombstone(document, version) for document, version in buried.items()])
    assert sink.held(IDS) == expected
    sink.delete([row.id for row in rows[::2]])
    left = {row.document_id for row in rows[1::2]}
    assert {document for document, held in sink.held(IDS).items() if held.rows} == left


def test_a_row_that_is_as_it_should_be_has_its_writers_digest(target: Target) -> None:
    """Metadata to the digit, every type of column, null; before and after a server has put them on disk."""
    fields: dict[str, tuple[str, list[Json]]] = {
        "flag": ("BOOL", [True, False]),
        "tiny": ("INT8", [-128, 127]),
        "small": ("INT16", [-32768, 0]),
        "middle": ("INT32", [2**31 - 1, -(2**31)]),
        "large": ("INT64", [2**63 - 1, -(2**63), 2**53 + 1]),
        "single": ("FLOAT", [0.1, 7, 3.4e38, -0.0, 123456, 9.99]),
        "double": ("DOUBLE", [0.1, 7, 1e308, 5e-324, 1 / 3, -0.0, 1e16]),
        "words": ("VARCHAR", ["é😀", "a\x00b", "", " x ", "1"]),
    }
    metadata: list[Metadata] = [
        {},
        {"int": 1, "float": 1.0, "large": 1e22, "zero": -0.0, "odd": 2**53 + 1, "last": 2**64 - 1, "least": -(2**63)},
        {"small": 5e-324, "great": 1.7976931348623157e308, "digits": 123456789.12345679, "whole": 1e15},
        {"none": None, "true": True, "lists": [[1, 1.0, 1.5, "1", None, {}]], "empty": [], "deep": {"er": {"a": [{}]}}},
        {"": 1, "é": "\x00\x01\x7f", "a b": '\u2028"\\/ \\u4e2d', "$meta": "1", "id": "x", "1": 1, "<&>": "<b>"},
        {"b": 1, "a": {"d": 1, "c": "y" * 60_000}},
    ]
    declared = {
        name: FieldConfig.model_validate(
            {"type": kind, "nullable": target.nullable, **({"max_length": 16} if kind == "VARCHAR" else {})}
        )
        for name, (kind, _values) in fields.items()
    }
    vectors = {"dense": VectorSpec(VectorConfig(embedder="d"), VectorKind.DENSE, DIMENSION, "s")}
    sink = sinks.MilvusSink(target.connection, wanted("every_type", vectors, declared))
    sink.prepare()
    rows = [
        sample(
            n,
            sparse=False,
            document_id="all",
            chunk_index=n,
            fields={name: values[n % len(values)] for name, (_kind, values) in fields.items()},
            metadata=metadata[n % len(metadata)],
        )
        for n in range(42)
    ]
    if target.nullable:
        rows.append(sample(99, sparse=False, document_id="all", chunk_index=99, fields=dict.fromkeys(fields)))
    sink.upsert(rows)
    expected = {row.id: row.digest() for row in rows}
    assert sink.held(["all"])["all"].rows == expected
    target.connection.call("flush", "every_type", doing="flushing")
    assert sink.held(["all"])["all"].rows == expected


def _hashed(target: Target, number: int, document: str, **changes: object) -> Row:
    """Return a row whose key is spread as those of chunks are."""
    key = hashlib.sha256(f"{document} {number}".encode()).hexdigest()[:32]
    return target.row(number, id=key, document_id=document, chunk_index=number, **changes)


def test_more_rows_than_an_answer_takes(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that are full are asked for again in parts, over several segments: each row comes once."""
    sink = sinks.MilvusSink(target.connection, target.wanted("many_rows"))
    sink.prepare()
    rows = [_hashed(target, n, f"{n % 3}.txt") for n in range(600)]
    for turn in range(2):
        sink.upsert(rows[turn::2])
        target.connection.call("flush", "many_rows", doing="flushing")
    sink.upsert(rows[::7])
    gone = {row.id for row in rows[::5]}
    sink.delete(sorted(gone))
    monkeypatch.setattr(sinks, "_ANSWER", 200)
    monkeypatch.setattr(sinks, "_FULL", 150)
    documents = ["0.txt", "1.txt", "2.txt"]
    held = sink.held(documents)
    assert {document: found.rows for document, found in held.items()} == {
        document: {row.id: row.digest() for row in rows if row.document_id == document and row.id not in gone}
        for document in documents
    }


@pytest.mark.lite
def test_keys_that_lie_close_together(lite_target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts are cut until they are small enough, also where keys are no hashes and lie side by side."""
    sink = sinks.MilvusSink(lite_target.connection, lite_target.wanted("close_keys"))
    sink.prepare()
    rows = [lite_target.row(n, document_id="close.txt") for n in range(9)]
    sink.upsert(rows)
    monkeypatch.setattr(sinks, "_ANSWER", 4)
    monkeypatch.setattr(sinks, "_FULL", 3)
    assert sink.held(["close.txt"])["close.txt"].rows == {row.id: row.digest() for row in rows}


@pytest.mark.milvus
def test_an_answer_that_the_server_does_not_send(server_target: Target) -> None:
    """Over 64 MiB gRPC refuses it, over 100 MB the server itself: it comes in parts, and is no outage."""
    sink = sinks.MilvusSink(server_target.connection, server_target.wanted("heavy"))
    sink.prepare()
    rows = [_hashed(server_target, n, "heavy", metadata={"long": "y" * 65_000}) for n in range(1700)]
    for start in range(0, len(rows), 100):
        sink.upsert(rows[start : start + 100])
    read = {"filter": one_of("document_id", ["heavy"]), "output_fields": ["metadata"], "consistency_level": "Strong"}
    for limit, refusal in ((1100, "larger than max"), (1700, "exceed the limit size")):
        with pytest.raises(UnavailableError, match=refusal):
            server_target.connection.call("query", "heavy", doing="reading", request=Request.KEYS, limit=limit, **read)
    assert sink.held(["heavy"])["heavy"].rows == {row.id: row.digest() for row in rows}
    server_target.connection.call("drop_collection", "heavy", doing="dropping")


@pytest.mark.lite
@pytest.mark.parametrize("code", [1, 1100, 65535])
def test_documents_are_asked_for_by_keys_alone(refusals: Refusals, code: int) -> None:
    """Whatever a server answers to such a question or to a tombstone, it is no document's fault."""
    connection = Connection(Config(uri=refusals.uri))
    sink = sinks.MilvusSink(connection, articles("refused"), shared=True)
    sink.prepare()
    refusals.code = code
    for call in (lambda: sink.held(["a"]), lambda: sink.bury([Tombstone("a", Version(1, "d"))]), lambda: sink.sweep(1)):
        with pytest.raises(UnavailableError, match="refused"):
            call()
    refusals.code = 0
    assert sink.held(["a"]) == {}
    connection.close()
