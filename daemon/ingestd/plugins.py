"""From a name in the configuration to the code behind it.

``type = "folder"`` under ``[sources.…]`` is the module ``ingestd.sources.folder``; a third party's is the module that
an entry point of that name in the group ``ingestd.sources`` names, or, for code that is no package, the module's
dotted name itself. Every plug-in module holds a frozen pydantic model called ``Config`` with a ``build`` method
(``ports`` says with which arguments for each kind). Nothing is imported until a configuration names it. Built-in
names win, so that installing a package cannot change what an existing configuration means.

A registry that modules enter themselves into on import was turned down: it makes what is known depend on what was
imported.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import to_jsonable_python

from ingestd.environment import resolved
from ingestd.errors import ConfigError
from ingestd.model import canonical_json

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

Kind: TypeAlias = Literal["sources", "extractors", "chunkers", "embedders", "sinks"]


@dataclass(frozen=True, slots=True)
class Plugin:
    """A plug-in as configured."""

    kind: Kind
    type: str
    module: str
    config: BaseModel

    @property
    def revision(self) -> int:
        """Raised by the plug-in's authors when the same input gives another result."""
        # Of the class: a key of that name, such as that of a model on a hub, is one of the settings.
        return int(getattr(type(self.config), "revision", 0))

    def identity(self) -> bytes:
        """Return what its results depend on: its type, its revision, its settings."""
        return canonical_json([self.type, self.revision, _ordered(self.config.model_dump())])

    def build(self, *arguments: object, **named: object) -> Any:  # noqa: ANN401 - each kind's port says what it is
        """Build the thing itself."""
        return self.config.build(*arguments, **named)  # type: ignore[attr-defined]


def _ordered(value: Any) -> Any:  # noqa: ANN401 - whatever a plug-in's settings hold
    """Return a value as JSON has it, with sets in an order that is the same in every process."""
    if isinstance(value, Mapping):
        return {str(key): _ordered(inner) for key, inner in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(_ordered, value), key=canonical_json)
    if isinstance(value, list | tuple):
        return [_ordered(inner) for inner in value]
    return to_jsonable_python(value)


def known(kind: Kind) -> list[str]:
    """Return the names of all plug-ins of a kind that are installed."""
    package = import_module(f"ingestd.{kind}")
    built_in = {module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_")}
    return sorted(built_in | {point.name for point in entry_points(group=f"ingestd.{kind}")})


def parse(kind: Kind, path: str, settings: Mapping[str, Any], *, default: str | None = None) -> Plugin:
    """Return the plug-in that a table of the configuration names, with its settings checked.

    Args:
        kind: The kind.
        path: The table's path in the configuration, for messages.
        settings: The table, with its ``type``.
        default: The type where the table names none.

    Raises:
        ConfigError: No such plug-in, or its settings are wrong: one line per fault.
    """
    rest = dict(settings)
    name = rest.pop("type", default)
    if not isinstance(name, str):
        raise ConfigError(f"{path}.type: missing; one of {', '.join(known(kind))}")
    module = _module(kind, path, name)
    found: list[str] = []
    settled = resolved(module.Config, rest, path, found)
    try:
        config = module.Config.model_validate(settled)
    except ValidationError as error:
        told = {fault.partition(": ")[0] for fault in found}
        more = [fault for fault in faults(error, path, module.Config) if fault.partition(": ")[0] not in told]
        raise ConfigError(*found, *more) from error
    if found:
        raise ConfigError(*found)
    return Plugin(kind, str(name), module.__name__, config)


def _module(kind: Kind, path: str, name: str) -> ModuleType:
    target = where(kind, name)
    if target is None:
        raise ConfigError(f"{path}.type: there is no {name!r}{nearest(name, known(kind))}")
    try:
        module = import_module(target)
    except Exception as error:  # importing runs a third party's code, or asks for an extra that is not installed
        raise ConfigError(f"{path}.type: {name!r} cannot be imported: {type(error).__name__}: {error}") from error
    if not hasattr(module, "Config"):
        raise ConfigError(f"{path}.type: {target} is no plug-in: it has no Config")
    return module


def where(kind: Kind, name: str) -> str | None:
    """Return the name of the module behind a plug-in's name; None: there is none."""
    if name.isidentifier() and not name.startswith("_") and find_spec(f"ingestd.{kind}.{name}") is not None:
        return f"ingestd.{kind}.{name}"
    points = entry_points(group=f"ingestd.{kind}", name=name)
    if points:
        return next(iter(points)).value
    return name if "." in name else None


def nearest(name: str, names: Sequence[str]) -> str:
    """Return a hint at what may have been meant: the nearest name, or all of them."""
    close = get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(names)}" if names else ""


def faults(error: ValidationError, path: str, model: type[BaseModel]) -> list[str]:
    """Return one line per fault of a validation, each with its key's path."""
    lines = []
    for fault in error.errors(include_url=False, include_input=False):
        location = ".".join(str(part) for part in fault["loc"] if part != "__root__")
        where = ".".join(part for part in (path, location) if part)
        if fault["type"] == "extra_forbidden":
            name = str(fault["loc"][-1])
            lines.append(f"{where}: unknown key{nearest(name, _keys(model, fault['loc'][:-1]))}")
        else:
            said = fault["msg"].removeprefix("Value error, ")
            if fault["type"] == "tuple_type":
                said = f"has to be a list: {where.rpartition('.')[2]} = [\u2026]"
            lines.append(f"{where}: {said}")
    return lines


def _keys(annotation: Any, location: tuple[int | str, ...]) -> list[str]:  # noqa: ANN401 - can be anything
    """Return the keys that a table knows, following its location down through models, dicts and lists of them."""
    for kind in get_args(annotation) if get_origin(annotation) in {Union, UnionType} else (annotation,):
        found: list[str] = []
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            if not location:
                return sorted(kind.model_fields)
            field = kind.model_fields.get(str(location[0]))
            found = _keys(field.annotation, location[1:]) if field is not None else []
        elif location and (arguments := get_args(kind)):
            found = _keys(arguments[0] if get_origin(kind) is tuple else arguments[-1], location[1:])
        if found:
            return found
    return []
