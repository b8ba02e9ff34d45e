"""Importing of pymilvus what is used: without pandas, and in Milvus Lite's process its message types alone.

pymilvus names ``DataFrame`` in annotations of its ORM classes and asks whether what it is given is one. For that it
takes pandas along: 67 MB of memory and half a second of a slow core, in the daemon and again in its Milvus Lite, nearly
half of what importing pymilvus costs. While it is imported a stand-in takes the place of pandas. Its ``DataFrame`` is a
class that nothing is an instance of; its functions are the real ones, loaded when one is called.

Milvus Lite needs no more of it than the generated messages; its client, which comes along, is half of what the child
imports otherwise, and the daemon waits for that at every start.

Waiting for a pymilvus without pandas was turned down: every start of the daemon and of every command pays for it now.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from importlib.abc import MetaPathFinder
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_NAMES = ("pandas", "pandas.api", "pandas.api.types")


def import_module(name: str) -> None:
    """Import a module that names pandas and hardly needs it; where it needs more than is named, with pandas itself."""
    before = set(sys.modules)
    try:
        with _stand_in():
            importlib.import_module(name)
    except (ImportError, AttributeError, TypeError):
        for added in set(sys.modules) - before:
            if added.partition(".")[0] == name:
                del sys.modules[added]
        importlib.import_module(name)


def import_part(name: str) -> None:
    """Import a part of a package without running the package, for a process that has no use for the rest of it.

    Where the part does not stand alone, the package is run, as it always is.
    """
    package = name.partition(".")[0]
    spec = find_spec(package)
    if spec is None or package in sys.modules:
        importlib.import_module(name)
        return
    sys.modules[package] = module_from_spec(spec)
    try:
        importlib.import_module(name)
    except (ImportError, AttributeError):
        for added in [added for added in sys.modules if added.partition(".")[0] == package]:
            del sys.modules[added]
        importlib.import_module(name)


def keep_pandas_out() -> None:
    """Have imports of pandas fail from now on, as if it were not installed: for a process that has no use for it.

    pyarrow imports it for its first array if it can, and does without if it cannot.
    """
    sys.meta_path.insert(0, _Refusal())


class _Refusal(MetaPathFinder):
    """Refuses pandas. A None in ``sys.modules`` would say the same to Python, but not to what Cython compiled."""

    def find_spec(self, name: str, _path: Sequence[str] | None, _target: ModuleType | None = None) -> None:
        """Refuse it, and leave the others to whoever comes next."""
        if name == "pandas":
            raise ModuleNotFoundError("pandas is not wanted here", name=name)


@contextlib.contextmanager
def _stand_in() -> Iterator[None]:
    """Have ``import pandas`` give the stand-in for a block, unless pandas is there already."""
    if "pandas" in sys.modules:
        yield
        return
    pandas, api, types = (_Package(name) for name in _NAMES)
    vars(pandas).update(api=api, DataFrame=type("DataFrame", (), {}))
    vars(api).update(types=types)
    sys.modules.update({module.__name__: module for module in (pandas, api, types)})
    try:
        yield
    finally:
        for module in _NAMES:
            del sys.modules[module]


class _Package(ModuleType):
    """A part of the stand-in: whatever function it is asked for is the one of the same name in pandas."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., object]:
        if name.startswith("__") or not self.__name__.endswith("types"):
            raise AttributeError(name)
        module = self.__name__

        def real(*arguments: object) -> object:
            found: object = getattr(importlib.import_module(module), name)(*arguments)
            return found

        return real
