"""Rows of many documents through the models in full windows, and back to their documents."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.fakes import (
    COLLECTION,
    DIMENSION,
    QUICK,
    Assembly,
    ManualLease,
    MemorySink,
    StubEmbedder,
    delete,
    dense_vector,
    open_store,
    upsert,
)

from ingestd.engine.breaker import Breakers
from ingestd.errors import DeadlyError, DocumentError, UnavailableError
from ingestd.model import Abandoned, Chunked, Embedded, Outcome, SparseVector, Stage, VectorKind, Verdict
from ingestd.stages.embed import PROBE, Embed, VectorField

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path


@pytest.fixture
def stages(tmp_path: Path) -> Iterator[Assembly]:
    """Return the stages over an empty state, with windows of four rows."""
    with open_store(tmp_path / "state") as store:
        yield Assembly(store, MemorySink(), window=4)


def documents(stages: Assembly, **texts: Sequence[str]) -> list[Chunked]:
    """Return documents in rows, one for each text."""
    events = [upsert(name, "\n".join(lines), at) for at, (name, lines) in enumerate(texts.items())]
    found = list(stages.chunk.process(stages.extracted(events, [])))
    return [one for one in found if isinstance(one, Chunked)]


def names(prefix: str, count: int) -> list[str]:
    """Return so many texts."""
    return [f"{prefix}{at}" for at in range(count)]


def shape(results: Sequence[object]) -> list[tuple[str, int, bool, bool]]:
    """Return each window's document, size, and whether it is the first and the last."""
    windows = [one for one in results if isinstance(one, Embedded)]
    assert len(windows) == len(results)
    return [(one.event.key.document_id, len(one.rows), one.first, one.last) for one in windows]


def test_windows_are_full_across_documents_and_regrouped(stages: Assembly) -> None:
    """Ten rows of three documents are three calls; each document's windows are told first and last."""
    batch = documents(stages, a=names("a", 3), b=names("b", 6), c=names("c", 1))
    results = list(stages.embed.process(batch))
    assert [len(call) for call in stages.embedder.calls] == [4, 4, 2]
    assert shape(results) == [
        ("a", 3, True, True),
        ("b", 1, True, False),
        ("b", 4, False, False),
        ("b", 1, False, True),
        ("c", 1, True, True),
    ]


def test_each_row_has_the_vector_of_its_own_text(stages: Assembly) -> None:
    """However rows are gathered, none gets its neighbour's vector."""
    batch = documents(stages, a=names("a", 5), b=names("b", 5))
    rows = [row for one in stages.embed.process(batch) if isinstance(one, Embedded) for row in one.rows]
    assert sorted(row.text for row in rows) == sorted(names("a", 5) + names("b", 5))
    for row in rows:
        np.testing.assert_array_equal(np.asarray(row.vectors["dense"]), dense_vector(row.text))


def test_a_document_without_new_rows_passes_without_the_model(stages: Assembly) -> None:
    """An empty document, or one that was only moved, goes on as one empty window."""
    assert shape(list(stages.embed.process(documents(stages, a=[])))) == [("a", 0, True, True)]
    assert stages.embedder.calls == []


def test_a_bad_row_fails_its_document_alone(stages: Assembly) -> None:
    """Halving finds the text that the model chokes on; all others have their vectors."""
    stages.embedder.errors["b1"] = DocumentError("no such token")
    batch = documents(stages, a=names("a", 1), b=names("b", 2), c=names("c", 1))
    results = list(stages.embed.process(batch))
    [bad] = [one for one in results if isinstance(one, Outcome)]
    assert (bad.event.key.document_id, bad.verdict) == ("b", Verdict.DEAD_LETTERED)
    assert bad.failure is not None
    assert (bad.failure.stage, bad.failure.message) == (Stage.EMBED, "no such token")
    assert bad.content is not None
    assert shape([one for one in results if one is not bad]) == [("a", 1, True, True), ("c", 1, True, True)]


def test_a_vector_that_is_not_a_number_never_goes_on(stages: Assembly) -> None:
    """Every vector is checked: the document of a bad one is a dead letter, its neighbours are written."""
    stages.embedder.bad = {"b0"}
    outcomes = stages.run(upsert("a", "a0", 1), upsert("b", "b0\nb1", 2))
    assert {one.event.key.document_id: one.verdict for one in outcomes} == {
        "a": Verdict.WRITTEN,
        "b": Verdict.DEAD_LETTERED,
    }
    assert stages.sink.texts() == {"a": ("a0",)}


def test_a_deadly_row_is_found_without_halving(stages: Assembly) -> None:
    """Each batch with it costs a model that has to be loaded again: after the first one, rows go one by one."""
    stages.embedder.errors["c1"] = DeadlyError("it killed the worker")
    results = list(stages.embed.process(documents(stages, a=names("a", 2), c=names("c", 2))))
    [bad] = [one for one in results if isinstance(one, Outcome)]
    assert (bad.event.key.document_id, bad.verdict) == ("c", Verdict.DEAD_LETTERED)
    assert shape([one for one in results if one is not bad]) == [("a", 2, True, True)]
    assert sum("c1" in call for call in stages.embedder.calls) == 2


def test_a_failure_in_a_later_window_takes_the_document_back(stages: Assembly) -> None:
    """What went on before is abandoned, once, with the reason; nothing more of it is embedded."""
    stages.embedder.errors["a5"] = DocumentError("no such token")
    results = list(stages.embed.process(documents(stages, a=names("a", 14), b=names("b", 1))))
    first, abandoned, other = results
    assert shape([first, other]) == [("a", 4, True, False), ("b", 1, True, True)]
    assert isinstance(abandoned, Abandoned)
    assert (abandoned.outcome.verdict, abandoned.chunked.event.key.document_id) == (Verdict.DEAD_LETTERED, "a")
    asked = {text for call in stages.embedder.calls for text in call}
    assert asked == {*names("a", 8), "b0"}


def test_a_failure_in_the_first_window_ends_the_document_once(stages: Assembly) -> None:
    """Nothing went on, so nothing is taken back; several bad rows are one outcome."""
    stages.embedder.errors = {"a1": DocumentError("first"), "a2": DocumentError("second")}
    [outcome] = stages.embed.process(documents(stages, a=names("a", 9)))
    assert isinstance(outcome, Outcome)
    assert outcome.failure is not None
    assert outcome.failure.message == "first"


def test_an_outage_of_the_model_is_held(stages: Assembly) -> None:
    """The worker is away for six calls, probes among them: then the document is embedded as if nothing had been."""
    stages.embedder.outage = 6
    assert shape(list(stages.embed.process(documents(stages, a=names("a", 2))))) == [("a", 2, True, True)]
    assert PROBE in stages.embedder.calls
    assert stages.breakers.passes(COLLECTION)


def test_a_text_that_kills_the_worker_is_transient(stages: Assembly) -> None:
    """The probe is answered and the batch is not, three times: the text that does it is found, and tried later."""
    stages.embedder.errors["b0"] = UnavailableError("device:none", "the worker died of it")
    results = list(stages.embed.process(documents(stages, a=names("a", 2), b=names("b", 1))))
    [outcome] = [one for one in results if isinstance(one, Outcome)]
    assert (outcome.event.key.document_id, outcome.verdict) == ("b", Verdict.RETRYING)
    assert outcome.failure is not None
    assert outcome.failure.error == "TransientError"
    assert shape([one for one in results if one is not outcome]) == [("a", 2, True, True)]


def test_one_model_is_asked_once_for_all_its_fields(tmp_path: Path) -> None:
    """An embedder of two kinds fills two fields with one call; another embedder has its own."""
    both, other = StubEmbedder("both", frozenset(VectorKind)), StubEmbedder("other")
    fields = [
        VectorField("dense", VectorKind.DENSE, both, DIMENSION),
        VectorField("sparse", VectorKind.SPARSE, both, None),
        VectorField("second", VectorKind.DENSE, other, DIMENSION),
    ]
    stage = Embed(fields, window=10, patience=Breakers(backoff=QUICK).patience(COLLECTION, lambda: None))
    with open_store(tmp_path / "state") as store:
        [window] = stage.process(documents(Assembly(store, MemorySink()), a=["one", "three"]))
    assert isinstance(window, Embedded)
    assert [len(both.calls), len(other.calls)] == [1, 1]
    for row in window.rows:
        assert row.vectors.keys() == {"dense", "sparse", "second"}
        sparse = row.vectors["sparse"]
        assert isinstance(sparse, SparseVector)
        assert sparse.indices.tolist() == [len(row.text)]


def test_what_one_model_made_is_not_asked_for_again_when_another_fails(tmp_path: Path) -> None:
    """A row that the second cannot embed is found by halving; the first may be paid for, and is asked once for each."""
    first, second = StubEmbedder("first"), StubEmbedder("second")
    second.errors["b1"] = DocumentError("no such token")
    fields = [VectorField(one.name, VectorKind.DENSE, one, DIMENSION) for one in (first, second)]
    stage = Embed(fields, window=16, patience=Breakers(backoff=QUICK).patience(COLLECTION, lambda: None))
    with open_store(tmp_path / "state") as store:
        batch = documents(Assembly(store, MemorySink()), a=names("a", 4), b=names("b", 4), c=names("c", 4))
        results = list(stage.process(batch))
    assert sorted(text for call in first.calls for text in call) == sorted(
        [*names("a", 4), *names("b", 4), *names("c", 4)]
    )
    whole = [one for one in results if isinstance(one, Embedded)]
    assert [one.event.key.document_id for one in whole] == ["a", "c"]
    for window in whole:
        for row in window.rows:
            assert row.vectors.keys() == {"first", "second"}
            assert np.array_equal(np.asarray(row.vectors["first"]), dense_vector(row.text))


def test_vectors_that_nobody_may_write_are_not_made(stages: Assembly) -> None:
    """A document whose lease has ended meanwhile is returned unread by the model; the others of the batch go on."""
    gone, here = documents(stages, a=["one", "two"], b=["three"])
    lease = ManualLease()
    event = replace(gone.event, lease=lease)
    lost = replace(gone, extracted=replace(gone.extracted, event=event))
    lease.ended = True
    outcome, window = stages.embed.process([lost, here])
    assert isinstance(outcome, Outcome)
    assert (outcome.event, outcome.verdict) == (event, Verdict.RETURNED)
    assert shape([window]) == [("b", 1, True, True)]
    assert stages.embedder.calls == [("three",)]


def test_what_needs_no_model_is_handed_over_before_one_is_asked(
    stages: Assembly, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A delete is written at once, though the model behind it may be away for hours; and so is each full window."""
    list(stages.run(upsert("gone", "old", 1)))
    said: list[str] = []
    embed = stages.embedder.embed

    def asked(*arguments: Any) -> Any:
        said.append("asked")
        return embed(*arguments)

    monkeypatch.setattr(stages.embedder, "embed", asked)
    events = [delete("gone", 2), upsert("long", "\n".join(names("l", 5)), 3)]
    batch = [one for one in stages.chunk.process(stages.extracted(events, [])) if isinstance(one, Chunked)]
    for found in stages.embed.process(batch, lambda: said.append("flush")):
        assert isinstance(found, Embedded)
        said.append(found.event.key.document_id)
    assert said == ["gone", "flush", "asked", "long", "flush", "asked", "long"]


class _Remembering:
    """A cache in memory (``ports.VectorCache``)."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, VectorKind, str], Any] = {}

    def get(self, space: str, kind: VectorKind, texts: Sequence[str]) -> dict[str, Any]:
        """Return what there is."""
        return {text: self.kept[space, kind, text] for text in texts if (space, kind, text) in self.kept}

    def put(self, space: str, kind: VectorKind, vectors: Mapping[str, Any]) -> None:
        """Keep all."""
        self.kept |= {(space, kind, text): vector for text, vector in vectors.items()}


def remembering(stages: Assembly, cache: _Remembering, kinds: Sequence[VectorKind], said: list[int]) -> Embed:
    """Return the stage with a cache, over fields of one embedder."""
    stages.embedder.kinds = frozenset(kinds)
    fields = [
        VectorField(kind.value, kind, stages.embedder, DIMENSION if kind is VectorKind.DENSE else None, "space")
        for kind in kinds
    ]
    patience = Breakers(backoff=QUICK).patience(COLLECTION, lambda: None)
    remembered = lambda _name, texts: said.append(texts)  # noqa: E731 - one line
    return Embed(fields, window=4, patience=patience, cache=cache, on_remembered=remembered)


def written(results: Sequence[object]) -> list[tuple[str, dict[str, Any]]]:
    """Return each row's text with its vectors."""
    assert all(isinstance(one, Embedded) for one in results)
    return [(row.text, dict(row.vectors)) for one in results if isinstance(one, Embedded) for row in one.rows]


def test_equal_texts_are_embedded_once(stages: Assembly) -> None:
    """Of one document and of several in a window; each row has its vector."""
    batch = documents(stages, a=["same", "other", "same"], b=["same"])
    made = written(list(stages.embed.process(batch)))
    assert stages.embedder.calls == [("same", "other")]
    assert [text for text, _ in made] == ["same", "other", "same", "same"]
    for text, vectors in made:
        np.testing.assert_array_equal(vectors["dense"], dense_vector(text))


def test_what_the_cache_knows_is_not_asked_for(stages: Assembly) -> None:
    """A later document with the text of an earlier one; the model is asked for the rest."""
    cache, said = _Remembering(), list[int]()
    embed = remembering(stages, cache, [VectorKind.DENSE], said)
    first = written(list(embed.process(documents(stages, a=["one", "two"]))))
    again = written(list(embed.process(documents(stages, b=["two", "three", "one"]))))
    all_known = written(list(embed.process(documents(stages, c=["three", "one"]))))
    assert stages.embedder.calls == [("one", "two"), ("three",)]
    assert said == [2, 2]
    for text, vectors in [*first, *again, *all_known]:
        np.testing.assert_array_equal(vectors["dense"], dense_vector(text))


def test_a_text_with_one_vector_known_of_two_is_embedded(stages: Assembly) -> None:
    """One pass of the model makes both, so half of it is no help; both fields are filled."""
    cache, said = _Remembering(), list[int]()
    list(remembering(stages, cache, [VectorKind.DENSE], said).process(documents(stages, a=["one"])))
    both = remembering(stages, cache, [VectorKind.DENSE, VectorKind.SPARSE], said)
    (made,) = written(list(both.process(documents(stages, b=["one"]))))
    assert made[1].keys() == {"dense", "sparse"}
    assert (len(stages.embedder.calls), said) == (2, [])
    list(both.process(documents(stages, c=["one"])))
    assert (len(stages.embedder.calls), said) == (2, [1])


def test_a_bad_vector_is_not_remembered(stages: Assembly) -> None:
    """Nor those of a call that failed: what is kept has been checked."""
    cache = _Remembering()
    embed = remembering(stages, cache, [VectorKind.DENSE], [])
    stages.embedder.bad = {"bad"}
    results = list(embed.process(documents(stages, a=["bad"], b=["good"])))
    assert sorted(type(one).__name__ for one in results) == ["Embedded", "Outcome"]
    assert [text for _, _, text in cache.kept] == ["good"]


def test_a_probe_is_not_answered_by_the_cache(stages: Assembly) -> None:
    """Somebody wrote a document with the probe's very words: whether the model is there is still asked of it."""
    cache = _Remembering()
    embed = remembering(stages, cache, [VectorKind.DENSE], [])
    list(embed.process(documents(stages, a=list(PROBE))))
    stages.embedder.calls.clear()
    stages.embedder.outage = 1
    list(embed.process(documents(stages, b=["new"])))
    assert stages.embedder.calls == [("new",), PROBE, ("new",)]
