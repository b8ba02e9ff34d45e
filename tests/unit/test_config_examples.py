"""The examples in config/examples say what is true: they are read as the daemon reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ingestd import config
from ingestd.errors import ConfigError

EXAMPLES = Path(__file__).parents[2] / "config" / "examples"


def test_each_example_is_read_here() -> None:
    """An example that no test reads would grow old in silence."""
    assert {"kafka.toml", "server.toml", "sidecar.env"} == {path.name for path in EXAMPLES.iterdir()}


def test_the_server_takes_its_token_from_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file holds no token; the secrets directory that systemd makes brings it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ingestd_milvus__token").write_text("root:hunter2\n")
    settings = config.load(EXAMPLES / "server.toml", {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert settings.milvus.token is not None
    assert settings.milvus.token.get_secret_value() == "root:hunter2"
    assert {"handbook", "minutes"} == settings.sources.keys()
    assert {"minilm", "splade"} == set(settings.used_embedders())


def test_members_without_a_disk_take_their_password_from_a_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither file nor variables hold one; without the secret the configuration is refused."""
    monkeypatch.chdir(tmp_path)
    secrets = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    with pytest.raises(ConfigError, match=r"sources\.cms\.sasl.*password"):
        config.load(EXAMPLES / "kafka.toml", secrets)
    (tmp_path / "ingestd_sources__cms__sasl__password").write_text("hunter2\n")
    settings = config.load(EXAMPLES / "kafka.toml", secrets)
    assert settings.stateless
    with pytest.raises(ConfigError, match=r"embedding\.cache_bytes .*: vectors are kept in the state directory"):
        config.load(EXAMPLES / "kafka.toml", secrets | {"INGESTD_EMBEDDING__CACHE_BYTES": "1000"})
    assert "hunter2" not in repr(settings)


def test_a_container_needs_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables, as Docker takes them line by line, are a whole configuration."""
    monkeypatch.chdir(tmp_path)
    lines = (EXAMPLES / "sidecar.env").read_text().splitlines()
    variables = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    settings = config.load(None, variables)
    assert (Path("/state"), "http://milvus:19530") == (settings.state_dir, settings.milvus.uri)
    assert settings.shutdown.drain_seconds == 8  # Docker kills after 10 s
    assert {"documents"} == settings.sources.keys()
    assert {"dense"} == settings.collections["articles"].vectors.keys()
