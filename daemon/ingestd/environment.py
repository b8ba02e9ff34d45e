"""Settings from names and texts: a variable, or a secret's file, to its key in the tree that the file's tables make.

``INGESTD_SOURCES__INBOX__PATH`` is the key ``sources.inbox.path``. A name means the key that is there already, also
where it is spelled in other letters; the type of the key says whether the text is read as JSON. Plug-ins' keys get
theirs once the plug-in is known (``resolved``): until then their texts are kept as ``Outside``.

pydantic-settings' own reader was turned down for both: it makes every name lower case, so that ``[sources.INBOX]`` and
an index's ``M`` are out of its reach, and it ends at the first text that is no JSON.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

PREFIX = "INGESTD_"
DELIMITER = "__"
OURS = frozenset({"CONFIG", "SECRETS_DIR"})
"""Names behind the prefix that are no keys."""
_LISTS = (list, tuple, set, frozenset)
_PARAMETER = str | bool | int | float
"""What a model takes in keys that it does not name (``extra="allow"``)."""


class Outside(str):
    """A text from the environment or a secret, whose key's type is not known yet."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Layer:
    """What the environment, or a secrets directory, sets."""

    tree: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    """The name that set a key, by the key's path."""
    faults: list[str] = field(default_factory=list)


def secrets_dir(environment: Mapping[str, str], found: list[str]) -> Path | None:
    """Return the directory whose files are secrets: the one that was named, systemd's, a container's; or None."""
    ours = environment.get(f"{PREFIX}SECRETS_DIR")
    if ours and not Path(ours).is_dir():
        found.append(f"{PREFIX}SECRETS_DIR: there is no directory {ours}")
        return None
    for candidate in (ours, environment.get("CREDENTIALS_DIRECTORY"), "/run/secrets"):
        if candidate and Path(candidate).is_dir():
            return Path(candidate)
    return None


def secrets_in(directory: Path, found: list[str]) -> dict[str, str]:
    """Return the texts of the files that are named like our variables: what else lies there may be of any kind."""
    try:
        files = sorted(file for file in directory.iterdir() if is_ours(file.name) and file.is_file())
    except OSError as error:
        found.append(f"{directory}: the secrets directory cannot be read: {error}")
        return {}
    texts = {}
    for file in files:
        try:
            texts[file.name] = file.read_text("utf-8").strip()  # editors end a file with a line end
        except (OSError, UnicodeDecodeError) as error:
            found.append(f"{file}: the secret cannot be read: {error}")
    return texts


def is_ours(name: str) -> bool:
    """Return whether a name is to be a key: also one in other letters, so that a typo does not go unseen."""
    return name.upper().startswith(PREFIX) and name[len(PREFIX) :].upper() not in OURS


def layer(texts: Mapping[str, str], model: type[BaseModel], spelled: Sequence[Mapping[str, Any]]) -> Layer:
    """Return what names and their texts set.

    Args:
        texts: By name. Each name begins with the prefix, and its first part is a key of the model.
        model: What can be set.
        spelled: Trees whose keys' spelling counts, the strongest first.
    """
    made = Layer()
    for name in sorted(texts):  # a table comes before what is in it, so that the narrower name wins
        _set(made, name, texts[name], model, spelled)
    return made


def _set(made: Layer, name: str, text: str, model: type[BaseModel], spelled: Sequence[Mapping[str, Any]]) -> None:
    annotation: Any = model
    node, others = made.tree, list(spelled)
    path: list[str] = []
    *tables, last = name[len(PREFIX) :].split(DELIMITER)
    for part in tables:
        key = _key(part, annotation, [node, *others])
        path.append(key)
        annotation = inner(annotation, key)
        if not isinstance(node.get(key, {}), dict) or not _is_table(annotation):
            made.faults.append(f"{name}: unknown name: {'.'.join(path)} is no table")
            return
        node = node.setdefault(key, {})
        others = [table for other in others if isinstance(table := other.get(key), dict)]
    key = _key(last, annotation, [node, *others])
    where = ".".join([*path, key])
    if where in made.origins:
        made.faults.append(f"{name}: {made.origins[where]} sets the same key, {where}")
        return
    made.origins[where] = name
    annotation = inner(annotation, key)
    try:
        node[key] = Outside(text) if annotation is Any else value_of(annotation, text)
    except ValueError as error:
        made.faults.append(f"{where} ({name}): {error}")


def _key(part: str, annotation: Any, tables: Sequence[Mapping[str, Any]]) -> str:  # noqa: ANN401 - any type
    """Return the key that a part of a name means.

    One that is there already, in these letters or in others; else a new one, in small letters. It is taken as written
    where somebody chose its letters: a small one among them, or a single one (an index's ``M``, which is no ``m``).
    """
    keys = [key for table in tables for key in table] + [
        key for model in _models(annotation) for key in model.model_fields
    ]
    if part in keys:
        return part
    same = [key for key in keys if key.casefold() == part.casefold()]
    if same:
        return same[0]
    return part if len(part) == 1 or any(letter.islower() for letter in part) else part.lower()


def _kinds(annotation: Any) -> Iterator[Any]:  # noqa: ANN401 - any type
    """Yield the types that an annotation allows, out of ``Annotated`` and unions."""
    if get_origin(annotation) is Annotated:
        yield from _kinds(get_args(annotation)[0])
    elif get_origin(annotation) in {Union, UnionType}:
        for one in get_args(annotation):
            yield from _kinds(one)
    else:
        yield annotation


def _models(annotation: Any) -> list[type[BaseModel]]:  # noqa: ANN401 - any type
    return [kind for kind in _kinds(annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)]


def _is_table(annotation: Any) -> bool:  # noqa: ANN401 - any type
    """Return whether there can be keys below; below an unknown key, or in a plug-in's table, there can."""
    dicts = any(dict in {kind, get_origin(kind)} for kind in _kinds(annotation))
    return dicts or annotation is Any or annotation is None or bool(_models(annotation))


def inner(annotation: Any, key: str) -> Any:  # noqa: ANN401 - any type
    """Return the type of a table's key; ``Any`` where it can be anything, None where there is no such key."""
    for kind in _kinds(annotation):
        if kind is Any:
            return Any
        if kind is dict or get_origin(kind) is dict:
            return (*get_args(kind), Any)[1] if get_args(kind) else Any
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            if key in kind.model_fields:
                return kind.model_fields[key].annotation
            if kind.model_config.get("extra") == "allow":
                return _PARAMETER
    return None


def value_of(annotation: Any, text: str) -> Any:  # noqa: ANN401 - any type, and its values
    """Return a text as its key's type is to be given it.

    Lists and tables are JSON. Texts, numbers and the like are left to the type's own check, but where a text would be
    one value and a number another, what reads as a number is one.

    Raises:
        ValueError: A list or a table is wanted, and this is none.
    """
    allowed = list(_kinds(annotation))
    wants_list = any(kind in _LISTS or get_origin(kind) in _LISTS for kind in allowed)
    wants_table = annotation is not Any and annotation is not None and _is_table(annotation)
    found: Any = text
    with suppress(ValueError, RecursionError):
        found = json.loads(text)
    if isinstance(found, list | dict):
        return found if wants_list or wants_table or Any in allowed else text
    if str in allowed and {int, float} & set(allowed) and isinstance(found, bool | int | float):
        return found
    if NoneType in allowed and found is None and (wants_list or wants_table):
        return None
    if (wants_list or wants_table) and not any(_is_plain(kind) for kind in allowed):
        example = '["one", "two"]' if wants_list else '{"key": "value"}'
        raise ValueError(f"write a {'list' if wants_list else 'table'} as JSON, such as {example}")
    return str(text)


def _is_plain(kind: Any) -> bool:  # noqa: ANN401 - any type
    """Return whether a text can be such a value, or become one."""
    if kind is NoneType or kind in _LISTS or kind is dict or get_origin(kind) in {*_LISTS, dict}:
        return False
    return not (isinstance(kind, type) and issubclass(kind, BaseModel) and not issubclass(kind, Enum))


def resolved(annotation: Any, value: Any, path: str, faults: list[str]) -> Any:  # noqa: ANN401 - any type
    """Return a plug-in's table with each text from outside as its key's type is to be given it.

    Args:
        annotation: The type: the plug-in's ``Config``, to begin with.
        value: The table, or what is in it.
        path: Its path in the configuration, for messages.
        faults: Takes one line for each text that its key cannot be given; the key is left out.
    """
    if isinstance(value, Outside):
        return value_of(annotation, value)
    if not isinstance(value, dict):
        return value
    made = {}
    for key, one in value.items():
        try:
            made[key] = resolved(inner(annotation, key), one, f"{path}.{key}", faults)
        except ValueError as error:
            faults.append(f"{path}.{key}: {error}")
    return made
