"""What a person sees of a configuration: its faults, a second instance, models that changed, and what is in force."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.fixtures.daemon import Workplace

CONFIG = 78


def test_each_fault_has_a_line_with_its_key(workplace: Workplace) -> None:
    """Exit 78, all faults at once, each with the path of its key and the nearest name; nothing on standard output."""
    workplace.configure("limits.max_byte", 1)
    workplace.configure("extraction.workers", 0)
    workplace.configure("milvus.uri", "ftp://somewhere")
    answer = workplace.ask("run")
    assert answer.code == CONFIG
    lines = dict(line.split(": ", 1) for line in answer.err.splitlines())
    assert {"limits.max_byte", "extraction.workers", "milvus.uri"} == lines.keys()
    assert "did you mean 'max_bytes'?" in lines["limits.max_byte"]
    assert answer.out == ""


def test_faults_of_plug_ins_and_references_have_their_keys_too(workplace: Workplace) -> None:
    """A source's unknown key, an embedder's wrong type, and names that refer to nothing, in one go."""
    workplace.configure("sources.inbox.rescan", 3)
    workplace.configure("sources.inbox.collection", "article")
    workplace.configure("embedders.other.type", "hashin")
    workplace.configure("collections.articles.chunker.max_tokens", 2)
    workplace.configure("collections.articles.vectors.dense.embedder", "hsh")
    answer = workplace.ask("check")
    assert answer.code == CONFIG
    assert {
        "sources.inbox.rescan",
        "embedders.other.type",
        "collections.articles.chunker.max_tokens",
        "collections.articles.vectors.dense.embedder",
    } <= {line.split(": ", 1)[0] for line in answer.err.splitlines()}


def test_an_unknown_name_in_the_environment_is_refused(workplace: Workplace) -> None:
    """A typo in a variable is a fault as much as one in the file, and says what was meant."""
    workplace.environment["INGESTD_MLVUS__URI"] = "http://127.0.0.1:1"
    answer = workplace.ask("config", "show")
    assert answer.code == CONFIG
    assert "INGESTD_MLVUS__URI: unknown name in the environment; did you mean 'milvus'?" in answer.err


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "there is no such file"), (b"state_dir = ", "no valid TOML"), (b"\xff", "cannot be read")],
)
def test_a_file_that_is_no_configuration_is_refused(workplace: Workplace, content: bytes | None, says: str) -> None:
    """A missing file, no TOML, no UTF-8: exit 78 with the file's name. Named in the environment, it is found."""
    path = workplace.root / "other.toml"
    if content is not None:
        path.write_bytes(content)
    workplace.environment["INGESTD_CONFIG"] = str(path)
    answer = workplace.ask("config", "show", configured=False)
    assert answer.code == CONFIG
    assert str(path) in answer.err
    assert says in answer.err


def test_settings_in_force_come_from_file_secrets_and_environment(workplace: Workplace) -> None:
    """``config show`` prints what counts in the end, and masks what is secret, in both forms."""
    secrets = workplace.root / "secrets"
    secrets.mkdir()
    (secrets / "ingestd_milvus__token").write_text("hunter2")
    workplace.configure("milvus.uri", "http://127.0.0.1:1")
    workplace.environment |= {"INGESTD_SECRETS_DIR": str(secrets), "INGESTD_LIMITS__MAX_CHUNKS": "77"}
    answer = workplace.ask("config", "show", "--json")
    assert answer.code == 0, answer.err
    assert "hunter2" not in answer.out + answer.err
    shown = answer.json
    assert ("http://127.0.0.1:1", "**********", 77) == (
        shown["milvus"]["uri"],
        shown["milvus"]["token"],
        shown["limits"]["max_chunks"],
    )
    assert shown["sources"]["inbox"]["settle_seconds"] == 0.5
    lines = workplace.ask("config", "show").out.splitlines()
    assert "limits.max_chunks = 77" in lines
    assert 'milvus.token = "**********"' in lines


def test_a_second_instance_is_refused_and_told_of_the_first(workplace: Workplace) -> None:
    """Exit 78 with the process that has the state directory; the first goes on as before."""
    with workplace.daemon() as daemon:
        daemon.until_ready()
        answer = workplace.ask("run")
        assert answer.code == CONFIG
        assert f"is in use by process {daemon.pid}" in answer.err
        workplace.write("one.txt", "One text.")
        daemon.until_settled(1)
        assert daemon.stop() == 0


def test_a_collection_of_another_model_is_refused_before_an_event_is_read(workplace: Workplace) -> None:
    """Other vectors, also of an equal dimension: exit 78 and a difference that can be read; the rows stay."""
    workplace.write("one.txt", "One text.")
    assert workplace.once()["written"] == 1
    workplace.write("two.txt", "Two texts.")
    workplace.know_the_tests_plug_ins()
    for key, value, subject in (
        ("embedders.hash.dimension", 32, "field dense of articles"),
        ("embedders.hash.type", "tests.fixtures.other_space_embedder", "vector space of dense in articles"),
    ):
        workplace.configure(key, value)
        answer = workplace.ask("run", "--once")
        assert answer.code == CONFIG, answer.err
        assert f"{subject}: is " in answer.err
        plan = workplace.ask("schema", "plan", "--json")
        assert plan.code == 5
        assert subject in {difference["subject"] for difference in plan.json}
        assert not any(difference["fixable"] for difference in plan.json)
        workplace.settings["embedders"]["hash"] = {"type": "hashing"}
    totals = workplace.once()
    assert (1, 1) == (totals["unchanged"], totals["written"])
    assert ["One text.", "Two texts."] == sorted(row.text for row in workplace.rows())


def test_a_plan_says_what_is_absent_and_apply_creates_it(workplace: Workplace) -> None:
    """``schema plan`` exits 5 before, 0 afterwards; a second ``apply`` finds nothing to do."""
    plan = workplace.ask("schema", "plan", "--json")
    assert plan.code == 5
    assert [("articles", True)] == [(difference["collection"], difference["fixable"]) for difference in plan.json]
    applied = workplace.ask("schema", "apply")
    assert applied.code == 0
    assert applied.out.startswith("created collection articles: id ")
    assert len(applied.out.splitlines()) == 1
    after = workplace.ask("schema", "plan")
    assert (0, "all is as configured\n") == (after.code, after.out)
    assert workplace.ask("schema", "apply").out == "nothing to do\n"


def test_check_has_a_line_for_each_thing_and_the_cure(workplace: Workplace) -> None:
    """All well: exit 0. A missing folder and a Milvus that is away: exit 1, each with what to do."""
    well = workplace.ask("check", "--json")
    assert well.code == 0, well.out
    names = {check["name"] for check in well.json["checks"] if check["ok"]}
    assert {"configuration", "state", "inbox:root", "model:hash", "milvus", "collection:articles"} <= names
    workplace.configure("milvus.uri", "http://127.0.0.1:1")
    workplace.configure("milvus.connect_timeout_seconds", 1)
    workplace.configure("sources.inbox.path", "nowhere")
    ill = workplace.ask("check")
    assert ill.code == 1
    failed = [line for line in ill.out.splitlines() if line.startswith("FAIL")]
    assert ["FAIL inbox:root", "FAIL milvus"] == [line.split(": ")[0] for line in failed]
    assert "mount or create the folder" in ill.out
