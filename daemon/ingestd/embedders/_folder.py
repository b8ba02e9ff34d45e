"""What the files of a sentence-transformers or transformers model say about it, read without torch.

Owns the reading of their JSON files: prompts, lengths, modules; ``_space`` makes a digest of what they say. The layout
is that of sentence-transformers 6: ``modules.json`` names a folder for each module, the first of which (often the
root) is the transformer; a folder without it is a plain transformers model. A router among the modules has others
below it, for documents and for queries; both roles' are read. Asking the loaded model instead was
turned down: the daemon needs the lengths before, and without, a worker.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from ingestd.embedders import _nomic
from ingestd.errors import ConfigError
from ingestd.model import Json, Role

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_Object: TypeAlias = "dict[str, Json]"

_ENDLESS = 10**9
"""transformers says 10**30 where a tokenizer has no limit."""
_AFTER_ROBERTA = frozenset({"camembert", "mpnet", "roberta", "xlm-roberta", "xlm-roberta-xl"})
_SETTINGS_FILES = "sentence_*_config.json"
"""``sentence_bert_config.json``, or one of its older names."""
_DEFAULTS: _Object = {
    "include_prompt": True,
    "module_input_name": "sentence_embedding",
    "module_output_name": "sentence_embedding",
}
"""Of the modules' settings, where the default is not off."""

_ROUTERS = frozenset({"Asym", "Router"})


@dataclass(frozen=True, slots=True)
class _Module:
    """One module of a model."""

    folder: Path
    kind: str
    """Its class."""
    first: bool
    """It gets the texts; the others get what comes out of the one before."""
    route: str = ""
    """The role whose texts alone it gets; empty: it gets all."""


def prompts(folder: Path, document: str | None, query: str | None) -> Mapping[Role, str]:
    """Return what is put before a text: as configured, or else as ``encode_document`` and ``encode_query`` do it.

    Those look for documents' prompts under ``passage`` and ``corpus`` too, but find ``document`` first: every model has
    that name, with an empty prompt where none was saved. So the others are never used, and a folder that the library
    does not load by ``modules.json`` has no prompts at all.

    Args:
        folder: The model's.
        document: The configured prompt for documents; None leaves it to the model.
        query: The same for queries.
    """
    file = folder / "config_sentence_transformers.json"
    saved = read(file).get("prompts") if (folder / "modules.json").is_file() else None
    known: _Object = saved if isinstance(saved, dict) else {}
    given = {Role.DOCUMENT: document, Role.QUERY: query}
    return {role: str(known.get(role.value) or "") if text is None else text for role, text in given.items()}


def length(folder: Path, most: int | None, role: Role = Role.DOCUMENT) -> int | None:
    """Return the most tokens that the model takes, special tokens and prompt included; None if nothing limits it.

    The least of what its files say and ``most``: a length that one file allows and another does not ends in an index
    error inside the model, or in positions that were never trained.
    """
    first = transformer(folder, role)
    lengths = [
        read(first / "tokenizer_config.json").get("model_max_length"),
        _positions(read(first / "config.json")),
        _nomic.length(read(first / "config.json")),
        most,
    ]
    for file in sorted(first.glob(_SETTINGS_FILES)):
        said = read(file)
        processor = said.get("processor_kwargs", said.get("tokenizer_args"))
        lengths += [said.get("max_seq_length"), said.get("document_length")]
        lengths.append(processor.get("model_max_length") if isinstance(processor, dict) else None)
    known = [int(said) for said in lengths if isinstance(said, int | float) and 0 < said < _ENDLESS]
    return min(known, default=None)


def _positions(config: _Object) -> int | None:
    """Return how many tokens have a position; models after RoBERTa count theirs from behind the padding's."""
    said = config.get("max_position_embeddings")
    if not isinstance(said, int):
        return None
    padding = config.get("pad_token_id", 1)
    offset = padding + 1 if config.get("model_type") in _AFTER_ROBERTA and isinstance(padding, int) else 0
    return said - offset


def tokenizer_file(folder: Path) -> Path:
    """Return the path of the model's ``tokenizer.json``.

    Raises:
        ConfigError: It has none.
    """
    path = transformer(folder) / "tokenizer.json"
    if not path.is_file():
        raise ConfigError(
            f"model: {folder} has no tokenizer.json, which chunking by tokens needs: "
            "save the model's fast tokenizer there (AutoTokenizer.from_pretrained(…).save_pretrained(…))"
        )
    return path


def modules(folder: Path) -> list[Json]:
    """Return what follows the transformer (pooling, dense layers, normalisation), in a form that compares.

    Settings that are off or at their default are left out: newer versions of the library write them all, older ones
    did not, and neither changes a vector.
    """
    found: list[Json] = []
    for module in _modules(folder):
        if not module.first:
            said = read(module.folder / "config.json")
            told = {key: value for key, value in said.items() if value not in (None, _DEFAULTS.get(key, False))}
            found.append({"module": module.kind, **told})
    return found


def inputs(folder: Path) -> list[Path]:
    """Return the folders of what gets the texts: the transformer, or that of documents and what a router has else."""
    return [module.folder for module in _modules(folder) if module.first] or [folder]


def routes(folder: Path) -> list[Json]:
    """Return by which way routers send the texts of each role, as folders of modules; nothing without a router."""
    return [[module.route, str(module.folder.relative_to(folder))] for module in _modules(folder) if module.route]


def transformer_config(folder: Path) -> _Object:
    """Return the content of the transformer's config.json."""
    return read(transformer(folder) / "config.json")


def settings(folder: Path) -> _Object:
    """Return what the library has of its own to say about a transformer, in whichever of its files."""
    return {key: value for file in sorted(folder.glob(_SETTINGS_FILES)) for key, value in read(file).items()}


def folders(folder: Path) -> list[Path]:
    """Return where weights may be: the model's folder and those of its modules, in a stable order."""
    return sorted({folder, *(module.folder for module in _modules(folder))})


def transformer(folder: Path, role: Role = Role.DOCUMENT) -> Path:
    """Return the folder of what gets a role's texts."""
    ways = {"", role.value}
    return next((module.folder for module in _modules(folder) if module.first and module.route in ways), folder)


def _modules(folder: Path) -> list[_Module]:
    """Return the modules; of a router, those below it."""
    path = folder / "modules.json"
    listed = _load(path) if path.is_file() else []
    if not isinstance(listed, list):
        raise ConfigError(f"model: {path} is no list of modules")
    found: list[_Module] = []
    for module in listed:
        if isinstance(module, dict):
            where, kind = folder / str(module.get("path", "")), _class(module.get("type", ""))
            first = not found
            found += _routed(where, first=first) if kind in _ROUTERS else [_Module(where, kind, first)]
    return found


def _routed(folder: Path, *, first: bool) -> Iterator[_Module]:
    """Yield the modules below a router, first those for documents.

    Raises:
        ConfigError: It sends texts another way than by their role, or reads what is not in the model's folder.
    """
    said = read(folder / "router_config.json") or read(folder / "config.json")
    types, structure, parameters = (said.get(key) for key in ("types", "structure", "parameters"))
    mapped = isinstance(parameters, dict) and parameters.get("route_mappings")
    if not isinstance(types, dict) or not isinstance(structure, dict) or mapped:
        raise ConfigError(f"model: the router in {folder} does not tell texts apart by their task alone")
    for role in Role:
        members = structure.get(role.value)
        if not isinstance(members, list):
            raise ConfigError(f"model: the router in {folder} has no route named {role.value!r}, only {[*structure]}")
        for place, member in enumerate(members):
            where, kind = folder / str(member), _class(types.get(str(member), ""))
            if kind in _ROUTERS or (kind == "SparseStaticEmbedding" and "path" in read(where / "config.json")):
                raise ConfigError(
                    f"model: {where} is a router below a router, or takes its weights from elsewhere ('path'): "
                    "load the model with sentence-transformers and save it again, its modules side by side"
                )
            yield _Module(where, kind, first and place == 0, role.value)


def _class(name: Json) -> str:
    """Return a class's name without its module's, which versions of the library have moved."""
    return str(name).rpartition(".")[2]


def read(path: Path) -> _Object:
    """Return a file's object; an absent file says nothing."""
    value = _load(path) if path.is_file() else {}
    return value if isinstance(value, dict) else {}


def _load(path: Path) -> Json:
    try:
        value: Json = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"model: {path} cannot be read: {error}") from error
    return value
