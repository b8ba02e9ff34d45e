"""The configuration: one reader, every fault told with its path, nothing ignored in silence."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from pydantic import BaseModel

from ingestd import config
from ingestd.config import BUILT_IN_EXTRACTORS, shown
from ingestd.errors import ConfigError
from ingestd.plugins import known

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "config" / "ingestd.toml"
MINIMAL = """
[embedders.words]
type = "hashing"

[collections.articles]
vectors.dense = { embedder = "words", output = "dense" }

[sources.inbox]
type = "folder"
path = "inbox"
collection = "articles"
"""


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Have none of the developer's own settings in the environment, and a working directory of the test's own."""
    for name in ("INGESTD_CONFIG", "INGESTD_SECRETS_DIR", "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def write(text: str, name: str = "ingestd.toml") -> Path:
    """Write a configuration into the working directory."""
    path = Path(name)
    path.write_text(text)
    return path.absolute()


def fault(text: str) -> tuple[str, ...]:
    """Return what is wrong with a configuration."""
    with pytest.raises(ConfigError) as caught:
        config.load(write(text))
    return caught.value.faults


def test_the_minimal_configuration_has_defaults_for_the_rest() -> None:
    """What is not said is as documented."""
    settings = config.load(write(MINIMAL))
    assert settings.state_dir == Path("var/state")
    assert (settings.limits.max_chunks, settings.retries.attempts) == (20_000, 8)
    assert settings.extractors.keys() == set(BUILT_IN_EXTRACTORS)
    assert settings.chunkers["articles"].type == "stable"
    assert settings.used_embedders() == ["words"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('state_dri = "x"', "state_dri: unknown key; did you mean 'state_dir'?"),
        ('[milvus]\nurl = "x"', "milvus.url: unknown key; did you mean 'uri'?"),
        ('[milvus.tls]\nca_fil = "x"', "milvus.tls.ca_fil: unknown key; did you mean 'ca_file'?"),
        ("[limits]\nmax_chunk = 3", "limits.max_chunk: unknown key; did you mean 'max_chunks'?"),
        ("[sources.inbox]\nrecursiv = true", "sources.inbox.recursiv: unknown key; did you mean 'recursive'?"),
        (
            "[sources.inbox]\nmass_delete = { shar = 0.1 }",
            "sources.inbox.mass_delete.shar: unknown key; did you mean 'share'?",
        ),
        ("[embedders.words]\ndimensions = 3", "embedders.words.dimensions: unknown key; did you mean 'dimension'?"),
        ("[extractors.csv]\nheadr = true", "extractors.csv.headr: unknown key; did you mean 'header'?"),
        (
            "[collections.articles]\nshared_id = true",
            "collections.articles.shared_id: unknown key; did you mean 'shared_ids'?",
        ),
        (
            "output = 'dense', metrik = 'IP'",
            "collections.articles.vectors.dense.metrik: unknown key; did you mean 'metric'?",
        ),
        (
            "[collections.articles]\nfields.lang = { type = 'VARCHAR', max_length = 3, nulable = true }",
            "collections.articles.fields.lang.nulable: unknown key; did you mean 'nullable'?",
        ),
        (
            "[collections.articles]\nchunker = { type = 'stable', max_token = 30 }",
            "collections.articles.chunker.max_token: unknown key; did you mean 'max_tokens'?",
        ),
    ],
)
def test_an_unknown_key_is_told_with_its_path_and_the_nearest_name(text: str, said: str) -> None:
    """At every level, also inside a plug-in's table."""
    assert fault(merged(text)) == (said,)


def merged(text: str) -> str:
    """Return the minimal configuration with lines added to its tables, or keys to its vector field."""
    if text.startswith("output = "):
        return MINIMAL.replace('output = "dense"', text)
    header, _, rest = text.partition("\n")
    if header in MINIMAL:
        return MINIMAL.replace(header, f"{header}\n{rest}", 1)
    return f"{text}\n{MINIMAL}"


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("[limits]\nmax_chunks = 0", "limits.max_chunks"),
        ("[limits]\nmax_chunks = 'many'", "limits.max_chunks"),
        ("[http]\nlisten = '8321'", "http.listen"),
        ("[http]\nlisten = 'localhost:99999'", "http.listen"),
        ("[log]\nlevel = 'loud'", "log.level"),
        ("milvus = 3", "milvus"),
        ("[sources.inbox]\nmass_delete = { share = 2.0 }", "sources.inbox.mass_delete.share"),
        ("[embedders.words]\ndimension = 1.5", "embedders.words.dimension"),
        ("[collections.articles]\nfields.lang = { type = 'VARCHAR' }", "collections.articles.fields.lang"),
        ("output = 'dense', metric = 'NEAR'", "collections.articles.vectors.dense.metric"),
        ("[collections.articles]\nchunker = { max_tokens = 3 }", "collections.articles.chunker.max_tokens"),
        ("[collections.notes]\nshared_ids = true", "collections.notes.vectors"),
        ("[sources.other]\ntype = 'folder'\ncollection = 'articles'", "sources.other.path"),
        ("[sources.other]\npath = 'x'", "sources.other.type"),
        ("[sources.inbox]\ninclude = '**/*.txt'", "sources.inbox.include"),
    ],
)
def test_a_wrong_value_is_told_with_its_path(text: str, path: str) -> None:
    """One line a fault, in words of TOML's."""
    [said] = fault(merged(text))
    assert said.partition(":")[0] == path
    assert "\n" not in said
    assert "tuple" not in said


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            'embedder = "words"',
            'embedder = "wrods"',
            "collections.articles.vectors.dense.embedder: there is no embedder 'wrods'; did you mean 'words'?",
        ),
        (
            "[collections.articles]",
            "[collections.articles]\ntokenizer = 'x'",
            "collections.articles.tokenizer: there is no embedder 'x'; known: words",
        ),
        (
            'collection = "articles"',
            'collection = "article"',
            "sources.inbox.collection: there is no collection 'article'; did you mean 'articles'?",
        ),
        (
            'type = "folder"',
            'type = "foldr"',
            "sources.inbox.type: there is no 'foldr'; did you mean 'folder'?",
        ),
    ],
)
def test_a_name_that_refers_to_nothing_is_told(old: str, new: str, said: str) -> None:
    """With what may have been meant."""
    assert fault(MINIMAL.replace(old, new)) == (said,)


def test_all_faults_are_told_at_once() -> None:
    """Nobody starts a daemon five times to find five typos."""
    text = MINIMAL.replace('"hashing"', '"hashing"\ndim = 3').replace('path = "inbox"', "").replace('"words",', '"w",')
    assert len(fault(text)) == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [("a = ", "is no valid TOML"), ("a = 1\na = 2", "is no valid TOML"), ("\0", "is no valid TOML")],
)
def test_a_file_that_is_no_toml_is_told(text: str, said: str) -> None:
    """With its path, not with a traceback."""
    [only] = fault(text)
    assert only.startswith(str(Path.cwd()))
    assert said in only


def test_a_file_that_cannot_be_read_is_told() -> None:
    """One that is missing names the two ways to name another one; one that is no text, or a folder, says so."""
    with pytest.raises(ConfigError, match=r"no such file; name one with --config FILE or \$INGESTD_CONFIG"):
        config.load(Path("nowhere.toml"))
    Path("latin.toml").write_bytes(b"a = '\xff'")
    for path in (Path("latin.toml"), Path.cwd()):
        with pytest.raises(ConfigError, match="cannot be read"):
            config.load(path)


def test_the_file_is_found_by_option_then_environment_then_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """``--config``, then ``$INGESTD_CONFIG``, then ``config/ingestd.toml`` below the working directory."""
    Path("config").mkdir()
    for name in ("config/ingestd.toml", "environment.toml", "option.toml"):
        write(f"state_dir = '{name}'\n{MINIMAL}", name)
    assert config.load(None).state_dir == Path("config/ingestd.toml")
    monkeypatch.setenv("INGESTD_CONFIG", "environment.toml")
    assert config.load(None).state_dir == Path("environment.toml")
    assert config.load(Path("option.toml")).state_dir == Path("option.toml")


def test_environment_is_stronger_than_secrets_and_these_than_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also key by key within one table: what one does not say, the next one does."""
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    path = write(f"[milvus]\nconsistency = 'Strong'\ntoken = 'file'\ndb_name = 'file'\n{MINIMAL}")
    (secrets / "INGESTD_MILVUS__TOKEN").write_text("secret\n")
    (secrets / "INGESTD_MILVUS__DB_NAME").write_text("secret\n")
    monkeypatch.setenv("INGESTD_SECRETS_DIR", str(secrets))
    monkeypatch.setenv("INGESTD_MILVUS__DB_NAME", "environment")
    milvus = config.load(path).milvus
    assert milvus.token is not None
    assert (milvus.db_name, milvus.token.get_secret_value(), milvus.consistency) == ("environment", "secret", "Strong")


@pytest.mark.parametrize("variable", ["INGESTD_SECRETS_DIR", "CREDENTIALS_DIRECTORY"])
def test_a_secrets_directory_may_hold_other_things(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    """Systemd's credentials and mounted secrets: links, folders and binary files of others are left alone."""
    (tmp_path / "..data").mkdir()
    (tmp_path / "..data" / "INGESTD_MILVUS__TOKEN").write_text("12345")
    (tmp_path / "INGESTD_MILVUS__TOKEN").symlink_to("..data/INGESTD_MILVUS__TOKEN")
    (tmp_path / "other.key").write_bytes(b"\xff\x00")
    monkeypatch.setenv(variable, str(tmp_path))
    token = config.load(write(MINIMAL)).milvus.token
    assert token is not None
    assert token.get_secret_value() == "12345"


def test_unknown_names_in_environment_and_secrets_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A typo there is no more ignored than in the file."""
    for name in ("MILVS__TOKEN", "MILVUS__TOKNE", "STATE_DIR__X"):
        monkeypatch.setenv(f"INGESTD_{name}", "x")
    (tmp_path / "INGESTD_LIMIT__MAX_CHUNKS").write_text("3")
    monkeypatch.setenv("INGESTD_SECRETS_DIR", str(tmp_path))
    assert fault(MINIMAL) == (
        "INGESTD_MILVS__TOKEN: unknown name in the environment; did you mean 'milvus'?",
        f"INGESTD_LIMIT__MAX_CHUNKS: unknown name in the secrets directory {tmp_path}; did you mean 'limits'?",
        "milvus.tokne (INGESTD_MILVUS__TOKNE): unknown key; did you mean 'token'?",
        "INGESTD_STATE_DIR__X: unknown name: state_dir is no table",
    )


def test_a_secrets_directory_that_is_named_has_to_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that starts without its password fails later, and elsewhere."""
    monkeypatch.setenv("INGESTD_SECRETS_DIR", "nowhere")
    assert fault(MINIMAL) == ("INGESTD_SECRETS_DIR: there is no directory nowhere",)


def test_a_secret_that_is_no_text_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With its file, not with a traceback, and it hides no other fault."""
    (tmp_path / "INGESTD_MILVUS__TOKEN").write_bytes(b"\xff")
    monkeypatch.setenv("INGESTD_SECRETS_DIR", str(tmp_path))
    secret, other = fault(merged("[limits]\nmax_chunks = 0"))
    assert secret.startswith(f"{tmp_path}/INGESTD_MILVUS__TOKEN: the secret cannot be read")
    assert other.startswith("limits.max_chunks: ")


@pytest.mark.parametrize("place", ["environment", "secrets"])
def test_no_file_is_needed_where_the_environment_says_it_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str
) -> None:
    """In a container; but a file that somebody named has to be there, and nothing at all is no configuration."""
    with pytest.raises(ConfigError, match=r"config/ingestd.toml: there is no such file"):
        config.load(None)
    texts = {
        "INGESTD_EMBEDDERS__WORDS__TYPE": "hashing",
        "INGESTD_COLLECTIONS__ARTICLES__VECTORS__DENSE": '{"embedder": "words", "output": "dense"}',
        "INGESTD_SOURCES__INBOX": '{"type": "folder", "path": "inbox"}',
        "INGESTD_SOURCES__INBOX__COLLECTION": "articles",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text) if place == "secrets" else monkeypatch.setenv(name, text)
    monkeypatch.setenv("INGESTD_SECRETS_DIR", str(tmp_path))
    settings = config.load(None)
    assert (settings.used_embedders(), [*settings.collections], [*settings.sources]) == (
        ["words"],
        ["articles"],
        ["inbox"],
    )
    with pytest.raises(ConfigError, match=r"nowhere\.toml: there is no such file"):
        config.load(Path("nowhere.toml"))
    monkeypatch.setenv("INGESTD_CONFIG", "nowhere.toml")
    with pytest.raises(ConfigError, match=r"nowhere\.toml: there is no such file"):
        config.load(None)


MIXED = """
[embedders.Words]
type = "hashing"

[collections.Articles]
vectors.Dense = { embedder = "Words", output = "dense", index = { type = "HNSW", M = 16 } }

[sources.INBOX]
type = "folder"
path = "inbox"
collection = "Articles"
"""


def test_a_variable_means_the_key_that_is_there_in_whatever_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables are upper case by custom; names of sources and parameters of indexes need not be lower case."""
    for name, value in {
        "SOURCES__INBOX__PATH": "other",
        "EMBEDDERS__WORDS__DIMENSION": "32",
        "COLLECTIONS__ARTICLES__VECTORS__DENSE__INDEX__M": "12",
        "COLLECTIONS__articles__VECTORS__DENSE__INDEX__efConstruction": "100",
        "COLLECTIONS__ARTICLES__VECTORS__DENSE__SEARCH__EF": "64",
        "EMBEDDERS__Others__TYPE": "hashing",
        "EMBEDDERS__MORE__TYPE": "hashing",
    }.items():
        monkeypatch.setenv(f"INGESTD_{name}", value)
    settings = config.load(write(MIXED))
    dense = settings.collections["Articles"].vectors["Dense"]
    assert dense.index is not None
    assert dense.index.model_extra == {"M": 12, "efConstruction": 100}
    assert dense.search == {"ef": 64}
    assert settings.embedders.keys() == {"Words", "Others", "more"}
    assert shown(settings)["sources"]["INBOX"]["path"] == "other"


def test_two_variables_for_one_key_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which of them counts would be chance."""
    monkeypatch.setenv("INGESTD_STATE_DIR", "one")
    monkeypatch.setenv("INGESTD_state_dir", "two")
    assert fault(MINIMAL) == ("INGESTD_state_dir: INGESTD_STATE_DIR sets the same key, state_dir",)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("[sources.'a/b']\ntype = 'folder'\npath = 'x'\ncollection = 'articles'", 'sources."a/b"'),
        ("[sources.'']\ntype = 'folder'\npath = 'x'\ncollection = 'articles'", 'sources.""'),
        ("[embedders.'a\u0001']\ntype = 'hashing'".replace("'a\u0001'", '"a\\u0001"'), 'embedders."a\\u0001"'),
        (f"[embedders.{'n' * 256}]\ntype = 'hashing'", f'embedders."{"n" * 256}"'),
        ("[collections.my-notes]\nvectors.dense = { embedder = 'words' }", "collections.my-notes"),
        ("[collections.notes]\nvectors.1st = { embedder = 'words' }", "collections.notes.vectors.1st"),
        ("[collections.notes]\nvectors.text = { embedder = 'words' }", "collections.notes.vectors.text"),
        ("[collections.articles]\nfields.version = { type = 'INT64' }", "collections.articles.fields.version"),
    ],
)
def test_a_name_that_nothing_could_carry_is_told(text: str, path: str) -> None:
    """Before a model is loaded for it, or Milvus is asked."""
    [said] = fault(merged(text))
    assert said.partition(": ")[0] == path
    assert "\n" not in said


def test_a_configuration_without_a_collection_is_told() -> None:
    """There is nothing that any command could do with it."""
    assert fault("") == ("collections: none is configured; documents go into a [collections.NAME]",)


def test_no_fault_hides_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown keys, wrong values, plug-ins' keys, references and the environment's own: in one go."""
    for name, value in {"EMBEDDERS": "notjson", "HTTP__LISTEN": "8321", "SOURCES__INBOX__WATCH": "no"}.items():
        monkeypatch.setenv(f"INGESTD_{name}", value)
    text = (
        merged("[limits]\nmax_chunk = 3").replace('path = "inbox"', "pth = 3").replace('"words", output', '"w", output')
    )
    assert {line.partition(": ")[0] for line in fault(text)} == {
        "embedders (INGESTD_EMBEDDERS)",
        "http.listen (INGESTD_HTTP__LISTEN)",
        "sources.inbox.watch (INGESTD_SOURCES__INBOX__WATCH)",
        "sources.inbox.path",
        "sources.inbox.pth",
        "limits.max_chunk",
        "collections.articles.vectors.dense.embedder",
    }


def test_a_list_from_the_environment_is_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the message says so; for a table as well."""
    monkeypatch.setenv("INGESTD_SOURCES__INBOX__INCLUDE", "*.txt")
    monkeypatch.setenv("INGESTD_SOURCES__INBOX__MASS_DELETE", "0.5")
    include, mass_delete = fault(MINIMAL)
    assert include == (
        'sources.inbox.include (INGESTD_SOURCES__INBOX__INCLUDE): write a list as JSON, such as ["one", "two"]'
    )
    assert mass_delete == (
        "sources.inbox.mass_delete (INGESTD_SOURCES__INBOX__MASS_DELETE): write a table as JSON, "
        'such as {"key": "value"}'
    )


def test_a_text_that_looks_like_json_is_a_text_where_one_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the file and from the environment; a list in the file is a list, and a text in its place is a fault."""
    path = write(MINIMAL.replace('"inbox"\ncoll', '"[1]"\ncoll'))
    assert shown(config.load(path))["sources"]["inbox"]["path"] == "[1]"
    monkeypatch.setenv("INGESTD_SOURCES__INBOX__PATH", '["a"]')
    monkeypatch.setenv("INGESTD_MILVUS__TOKEN", '{"a": 1}')
    settings = config.load(path)
    assert shown(settings)["sources"]["inbox"]["path"] == '["a"]'
    assert settings.milvus.token is not None
    assert settings.milvus.token.get_secret_value() == '{"a": 1}'
    [said] = fault(MINIMAL + "include = '[\"*.txt\"]'")
    assert said.startswith("sources.inbox.include: ")


def test_an_indexs_parameters_are_shown() -> None:
    """All that is in force, also keys that only Milvus knows."""
    tree = shown(config.load(write(MIXED)))
    assert tree["collections"]["Articles"]["vectors"]["Dense"]["index"] == {"type": "HNSW", "M": 16}


def test_any_value_can_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers, truth values, paths, and lists and tables as JSON, at any depth and in plug-ins' tables."""
    for name, value in {
        "LIMITS__MAX_CHUNKS": "7",
        "SOURCES__INBOX__PATH": "12345",
        "SOURCES__INBOX__RECURSIVE": "false",
        "SOURCES__INBOX__INCLUDE": '["*.txt", "*.md"]',
        "SOURCES__INBOX__MASS_DELETE__SHARE": "0.5",
        "COLLECTIONS__ARTICLES__VECTORS__DENSE__METRIC": "IP",
        "COLLECTIONS__ARTICLES__CHUNKER__MAX_TOKENS": "99",
        "EMBEDDERS__WORDS__KINDS": '["dense"]',
        "RETRIES": '{"attempts": 3}',
    }.items():
        monkeypatch.setenv(f"INGESTD_{name}", value)
    tree = shown(config.load(write(MINIMAL)))
    inbox = tree["sources"]["inbox"]
    assert (inbox["path"], inbox["recursive"], inbox["include"]) == ("12345", False, ["*.txt", "*.md"])
    assert inbox["mass_delete"] == {"share": 0.5, "documents": 50}
    assert (tree["limits"]["max_chunks"], tree["retries"]["attempts"]) == (7, 3)
    assert tree["collections"]["articles"]["vectors"]["dense"]["metric"] == "IP"
    assert tree["collections"]["articles"]["chunker"]["max_tokens"] == 99
    assert tree["embedders"]["words"]["kinds"] == ["dense"]


def test_a_table_in_one_variable_that_is_no_json_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a fault like any other."""
    monkeypatch.setenv("INGESTD_LIMITS", "max_chunks = 3")
    [said] = fault(MINIMAL)
    assert "limits" in said
    assert "JSON" in said


def ingestd(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    command = [sys.executable, "-m", "ingestd", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("command", [("check",), ("run", "--once"), ("config", "show"), ("search", "articles", "x")])
def test_a_bad_configuration_ends_a_command_with_78(command: tuple[str, ...]) -> None:
    """One line a fault on standard error, nothing on standard output, and nothing was made."""
    path = write(merged("[limits]\nmax_chunk = 3\nmax_bytes = 0"), "bad.toml")
    done = ingestd(*command, "--config", str(path))
    assert (done.returncode, done.stdout) == (78, "")
    assert sorted(line.partition(":")[0] for line in done.stderr.splitlines()) == [
        "limits.max_bytes",
        "limits.max_chunk",
    ]
    assert [entry.name for entry in Path.cwd().iterdir()] == ["bad.toml"]


@pytest.mark.parametrize("kind", ["missing", "folder", "loop"])
def test_a_file_that_cannot_be_read_ends_a_command_with_78(tmp_path: Path, kind: str) -> None:
    """As a configuration that is wrong in itself does, and in one line."""
    path = tmp_path / "named.toml"
    if kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    done = ingestd("config", "show", "--config", str(path))
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.startswith(f"{path}: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("secrets", "shown_as"),
    [
        ({"TOKEN": "hunter2"}, {"token": "**********", "password": None}),
        ({"USER": "root", "PASSWORD": "hunter2"}, {"token": None, "password": "**********"}),
    ],
)
def test_secrets_are_masked(
    monkeypatch: pytest.MonkeyPatch, secrets: dict[str, str], shown_as: dict[str, str | None]
) -> None:
    """``config show`` prints what is in force, as text and as JSON, and no secret."""
    path = write(f"[milvus]\nuri = 'http://127.0.0.1:1'\n{MINIMAL}")
    for name, value in secrets.items():
        monkeypatch.setenv(f"INGESTD_MILVUS__{name}", value)
    text, as_json = (ingestd("config", "show", "--config", str(path), *more) for more in ((), ("--json",)))
    assert (text.returncode, as_json.returncode) == (0, 0)
    assert "hunter2" not in text.stdout + text.stderr + as_json.stdout + as_json.stderr
    milvus = json.loads(as_json.stdout)["milvus"]
    assert {name: milvus[name] for name in shown_as} == shown_as
    [masked] = [name for name, value in shown_as.items() if value]
    assert f'milvus.{masked} = "**********"' in text.stdout.splitlines()
    assert 'state_dir = "var/state"' in text.stdout.splitlines()


def test_the_shipped_configurations_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """The annotated one and the quick starts' are valid as they are."""
    monkeypatch.chdir(ROOT)
    for name, source in (("ingestd", "inbox"), ("quickstart", "inbox"), ("kafka-quickstart", "cms")):
        settings = config.load(ROOT / "config" / f"{name}.toml")
        assert settings.sources.keys() == {source}
        assert settings.used_embedders() == ["minilm", "splade"]


TABLE = re.compile(r"^(?:# )?\[([\w.]+)\]")
KEY = re.compile(r"(?:^(?:# )?|[{,] )([A-Za-z][\w.]*) = ")


def explained(path: Path) -> dict[str, set[str]]:
    """Return the keys that a file names, set or commented out, by table; keys of inline tables count for theirs."""
    tables: dict[str, set[str]] = {"": set()}
    table = ""
    for line in path.read_text().splitlines():
        if header := TABLE.match(line):
            table = header[1]
            tables.setdefault(table, set())
            outer, _, name = table.rpartition(".")
            tables.setdefault(outer, set()).add(name)
        for key in KEY.findall(line):
            tables[table].add(key.partition(".")[0])
            if "{" in line:
                inline = KEY.match(line)
                assert inline is not None
                tables.setdefault(f"{table}.{inline[1]}", set()).add(key)
    return tables


def keys_of(model: type[BaseModel], table: str) -> dict[str, set[str]]:
    """Return the keys that a model knows, by table, models inside it too; what people name (dicts) is not followed."""
    found = {table: set(model.model_fields)}
    for name, field in model.model_fields.items():
        among = () if get_origin(field.annotation) is dict else get_args(field.annotation)
        for inner in (field.annotation, *among):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                found |= keys_of(inner, f"{table}.{name}" if table else name)
    return found


def test_the_annotated_kafka_source_is_valid_as_it_is() -> None:
    """With each of its lines put in force in turn: what is commented out there can be copied."""
    lines = SHIPPED.read_text().splitlines()
    section = lines[lines.index("# [sources.cms]") :]
    plain = [line.removeprefix("# ") for line in section if KEY.match(line) or line.startswith("# [")]
    at = next(at for at, line in enumerate(plain) if line.startswith("[sources.cms.schema_registry]"))
    main, rest = plain[1:at], plain[at:]
    base = {line.partition(" = ")[0]: line for line in reversed(main)}
    base.pop("topic_pattern")
    chosen = [base, *({**base, line.partition(" = ")[0]: line} for line in main if "topic_pattern" not in line)]
    # Certificates that are not there are for the start to find; of two ways to get a token one is named.
    secured = [line for line in rest if not line.startswith(("token", "client_", "scope", "ca_file", "kerb"))]
    for keys in chosen:
        text = "\n".join([MINIMAL, "[sources.cms]", *keys.values()])
        loaded = config.load(write("\n".join([text, *secured])))
        assert loaded.sources["cms"].type == "kafka"


def test_the_annotated_configuration_names_every_key() -> None:
    """A key that a model has and the file does not explain is one that nobody finds."""
    named = explained(SHIPPED)
    wanted = keys_of(config._File, "")
    assert wanted.pop("") == {name.partition(".")[0] for name in named if name} | {"state_dir"}
    missing = {f"{table}.{key}" for table, keys in wanted.items() for key in keys - named.get(table, set())}
    in_collections = named["collections.articles"] | {"chunker"}
    missing |= {f"collections.{key}" for key in set(config.CollectionSettings.model_fields) - in_collections}
    for field in ("vectors", "fields"):
        inner = [keys for table, keys in named.items() if table.startswith(f"collections.articles.{field}.")]
        missing |= {f"{field}.{key}" for key in model_of(field) - set[str]().union(*inner)}
    assert missing == set()


def model_of(field: str) -> set[str]:
    """Return the keys of a collection's vector field, or of a declared one."""
    _, inner = get_args(config.CollectionSettings.model_fields[field].annotation)
    assert issubclass(inner, BaseModel)
    return set(inner.model_fields)


@pytest.mark.parametrize("kind", ["sources", "extractors", "embedders", "chunkers"])
def test_the_annotated_configuration_names_every_plug_ins_keys(kind: Any) -> None:
    """Of each plug-in that comes with the daemon: in a table of its kind."""
    tables = explained(SHIPPED)
    place = "collections.articles.chunker" if kind == "chunkers" else f"{kind}."
    named = set[str]().union(*(keys for table, keys in tables.items() if table.startswith(place)))
    for name in known(kind):
        model = import_module(f"ingestd.{kind}.{name}").Config
        assert set(model.model_fields) - named == set(), name


@pytest.mark.parametrize(
    ("mover", "reader", "clashes"),
    [
        ('path = "in"\ndone = "done"', 'path = "in"', True),
        ('path = "in"\nfailed = "failed"', 'path = "in/sub"', True),
        ('path = "in/drop"\ndone = "done"', 'path = "in"', True),
        ('path = "in/drop"\ndone = "done"', 'path = "in"\nexclude = ["drop/"]', False),
        ('path = "in/drop"\ndone = "done"', 'path = "in"\nrecursive = false', False),
        ('path = "in"\ndone = "done"', 'path = "other"', False),
        ('path = "in"\ndone = "done"', 'path = "inbox"', False),
        ('path = "in"\ndone = "done"\ninclude = ["*.pdf"]', 'path = "in"\ninclude = ["*.txt"]', False),
        ('path = "in"\ndone = "done"\ninclude = ["*.pdf"]', 'path = "in"', True),
        ('path = "in"', 'path = "in"', False),
        ('path = "in"\ndone = "done"\ninclude = ["*.md"]', 'path = "in"\ninclude = ["**/*.md"]', True),
        ('path = "in"\ndone = "done"\ninclude = ["*.md"]', 'path = "in"\ninclude = ["a*"]', True),
        ('path = "in"\ndone = "done"\ninclude = ["a*"]', 'path = "in"\nexclude = ["a*"]', False),
        ('path = "in"\ndone = "done"', 'path = "link"', True),
    ],
)
def test_a_drop_box_does_not_go_with_another_source_of_its_files(mover: str, reader: str, *, clashes: bool) -> None:
    """What it moves away would be deleted from the other's collection, whole folders of it."""
    Path("in").mkdir()
    Path("link").symlink_to("in")
    text = MINIMAL.partition("[sources.")[0] + "".join(
        f'[sources.{name}]\ntype = "folder"\ncollection = "articles"\n{keys}\n'
        for name, keys in (("mover", mover), ("reader", reader))
    )
    if not clashes:
        assert {"mover", "reader"} == config.load(write(text)).sources.keys()
        return
    (told,) = fault(text)
    assert told.startswith("sources.mover: does not go with sources.reader: files of in")


@pytest.mark.parametrize(
    ("one", "other", "clashes"),
    [
        ('done = "kept"', 'done = "kept"', True),
        ('done = "kept"', 'done = "./kept"', True),
        ('done = "kept"', 'done = "link"', True),
        ('done = "kept"', 'failed = "kept"', True),
        ('done = "kept"', 'done = "elsewhere"', False),
        ('failed = "kept"', 'failed = "kept"', False),  # what lies beside a failed file says whose it is
    ],
)
def test_done_is_one_sources_alone(one: str, other: str, *, clashes: bool) -> None:
    """A file that is put back for a repair would be the other's, and its text in the wrong document."""
    Path("kept").mkdir()
    Path("link").symlink_to("kept")
    text = MINIMAL.partition("[sources.")[0] + "".join(
        f'[sources.{name}]\ntype = "folder"\npath = "{name}"\ncollection = "articles"\n{keys}\n'
        for name, keys in (("one", one), ("other", other))
    )
    if not clashes:
        assert {"one", "other"} == config.load(write(text)).sources.keys()
        return
    assert all("nothing says whose they are" in line for line in fault(text))


@pytest.mark.parametrize(
    ("one", "other", "why"),
    [
        ('topics = ["a", "b"]', 'topics = ["b", "c"]', "read the same topics"),
        ('topic_pattern = "docs-.*"', 'topics = ["docs-1"]', "read the same topics"),
        ('topic_pattern = "docs-.*"', 'topic_pattern = "mail-.*"', "read the same topics"),
        ('topics = ["a"]', 'topics = ["b"]', None),
        ('topic_pattern = "docs-.*"', 'topics = ["mail"]', None),
        ('topics = ["a"]', 'topics = ["a"]\ngroup_id = "other"', None),
        ('topics = ["a"]', 'topics = ["a"]\nbootstrap_servers = ["elsewhere:9092"]', None),
        ('topics = ["a"]\ngroup_instance_id = "x"', 'topics = ["b"]\ngroup_instance_id = "x"', "throw each other out"),
        ('topics = ["a"]\ngroup_instance_id = "x"', 'topics = ["b"]\ngroup_instance_id = "y"', None),
    ],
)
def test_members_of_one_group_do_not_share_topics_within_a_daemon(one: str, other: str, why: str | None) -> None:
    """Each would get half of the records, and each collection would lack the other's."""
    both = {"bootstrap_servers": '["localhost:9092"]', "group_id": '"ingestd"'}
    text = MINIMAL.partition("[sources.")[0]
    for name, keys in (("one", one), ("other", other)):
        said = "".join(f"{key} = {value}\n" for key, value in both.items() if key not in keys)
        text += f'[sources.{name}]\ntype = "kafka"\ncollection = "articles"\n{keys}\n{said}'
    if why is None:
        assert {"one", "other"} == config.load(write(text)).sources.keys()
        return
    told = fault(text)
    assert len(told) == 2  # each speaks for itself
    assert all(why in line for line in told)
