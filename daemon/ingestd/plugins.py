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
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pydantic import BaseModel, ValidationError

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
        return int(getattr(self.config, "revision", 0))

    def identity(self) -> bytes:
        """Return what its results depend on: its type, its revision, its settings."""
        return canonical_json([self.type, self.revision, self.config.model_dump(mode="json")])

    def build(self, *arguments: object, **named: object) -> Any:  # noqa: ANN401 - each kind's port says what it is
        """Build the thing itself."""
        return self.config.build(*arguments, **named)  # type: ignore[attr-defined]


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
    try:
        config = module.Config.model_validate(rest)
    except ValidationError as error:
        raise ConfigError(*faults(error, path, module.Config)) from error
    return Plugin(kind, name, module.__name__, config)


def _module(kind: Kind, path: str, name: str) -> ModuleType:
    target = _target(kind, name)
    if target is None:
        raise ConfigError(f"{path}.type: there is no {name!r}{nearest(name, known(kind))}")
    try:
        module = import_module(target)
    except Exception as error:  # importing runs a third party's code, or asks for an extra that is not installed
        raise ConfigError(f"{path}.type: {name!r} cannot be imported: {type(error).__name__}: {error}") from error
    if not hasattr(module, "Config"):
        raise ConfigError(f"{path}.type: {target} is no plug-in: it has no Config")
    return module


def _target(kind: Kind, name: str) -> str | None:
    """Return the name of the module behind a plug-in's name."""
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
            lines.append(f"{where}: {fault['msg'].removeprefix('Value error, ')}")
    return lines


def _keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Return the keys that a table knows, following the location down through nested models and dicts of them."""
    current: type[BaseModel] | None = model
    skip = False
    for part in location:
        if skip:
            skip = False
            continue
        field = current.model_fields.get(str(part)) if current is not None else None
        if field is None:
            return []
        current, skip = _model_in(field.annotation)
    return sorted(current.model_fields) if current is not None else []


def _model_in(annotation: Any) -> tuple[type[BaseModel] | None, bool]:  # noqa: ANN401 - an annotation can be anything
    """Return the model inside an annotation, and whether a key of a dict lies before it."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    origin, arguments = getattr(annotation, "__origin__", None), getattr(annotation, "__args__", ())
    if isinstance(origin, type) and issubclass(origin, Mapping) and arguments:
        return _model_in(arguments[-1])[0], True
    for argument in arguments:
        found, skip = _model_in(argument)
        if found is not None:
            return found, skip
    return None, False
