"""The stand-in for the providers refuses what they would refuse: a mistake of ours is not seen by its kindness."""

from __future__ import annotations

import importlib
import json
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
from tests.fixtures.provider import BASES, DIALECTS, Provider, options, provider

from ingestd.model import Role

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@pytest.fixture(params=DIALECTS)
def name(request: pytest.FixtureRequest) -> str:
    """Each provider."""
    return str(request.param)


@pytest.fixture
def server(name: str) -> Iterator[Provider]:
    """The stand-in for it: what it objects to is looked at, and forgotten."""
    with provider(name) as made:
        yield made
        made.objections.clear()


def request(
    name: str, server: Provider, texts: Sequence[str], role: Role = Role.DOCUMENT
) -> tuple[str, dict[str, Any]]:
    """Return the path and the payload of our own request."""
    module = importlib.import_module(f"ingestd.embedders.{name.partition('-')[0]}")
    embedder = module.Config(**options(name, server), api_key=server.key).build("far", None)
    path, payload = embedder._wire.request(texts, role, cut=False)
    embedder.close()
    return BASES.get(name, "/v1") + path, payload


def ask(server: Provider, path: str, payload: object) -> tuple[int, str]:
    """Return the status and the body of an answer."""
    asked = urllib.request.Request(
        server.root + path,
        json.dumps(payload).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {server.key}", "x-goog-api-key": server.key},
    )
    try:
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_its_limit_is_the_class_s(name: str) -> None:
    """What an embedder fills its requests to is what the provider takes."""
    module = importlib.import_module(f"ingestd.embedders.{name.partition('-')[0]}")
    assert DIALECTS[name].most == module.Config.inputs


def test_it_takes_a_full_request_and_no_more(name: str, server: Provider) -> None:
    """One text beyond the limit is refused, and remembered."""
    most = DIALECTS[name].most
    assert ask(server, *request(name, server, ["a"] * most))[0] == 200
    assert server.objections == []
    status, said = ask(server, *request(name, server, ["a"] * (most + 1)))
    assert status == 400
    assert f"{most + 1} texts in one request" in said
    assert len(server.objections) == 1


def test_it_refuses_a_key_that_it_does_not_know(name: str, server: Provider) -> None:
    """At the top, and in each request of a batch."""
    path, payload = request(name, server, ["a"])
    for table in (payload, *payload.get("requests", ())):
        table["wait_for_model"] = True
        status, said = ask(server, path, payload)
        del table["wait_for_model"]
        assert status == 400
        assert "wait_for_model" in said
    assert ask(server, path, payload)[0] == 200


def test_it_remembers_the_role(name: str, server: Provider) -> None:
    """Of each request, where the API has roles; a word for one that it does not know is refused."""
    known = bool(DIALECTS[name].roles)
    for role in Role:
        assert ask(server, *request(name, server, ["a"], role))[0] == 200
    assert server.roles() == (list(Role) if known else [None, None])
    path, payload = request(name, server, ["a"])
    word = next(iter(DIALECTS[name].roles), None)
    told = json.loads(json.dumps(payload).replace(f'"{word}"', '"clustering_of_sorts"'))
    assert ask(server, path, told)[0] == (400 if known else 200)
