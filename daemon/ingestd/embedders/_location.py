"""Where a model's files are: a folder, a folder inside an installed package, or a model of the Hugging Face hub.

Owns the meaning of the option ``model``. Used by the daemon (for the tokenizer; no weights are fetched then) and by
the worker (for all). The libraries load from the folder that is found here and never look at the hub themselves:
left to them, each file is asked for anew at every start, and an outage of the hub stops a daemon that has it all.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

from ingestd.errors import ConfigError

_DESCRIPTIONS = ["*.json", "*.txt", "*.model", "*.py"]
_SAFE_WEIGHTS = ["*.safetensors"]
_OLD_WEIGHTS = ["*.bin"]
_HEADS = ["sparse_linear.pt", "colbert_linear.pt"]
"""BGE-M3's, which are in no format that is safe; FlagEmbedding reads them as weights only."""
_OTHER_BACKENDS = ["onnx/*", "openvino/*", "*.onnx", "*.gguf"]
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def locate(model: str, revision: str | None, *, weights: bool) -> Path:
    """Return the folder with a model's files.

    Args:
        model: An existing folder; ``package:NAME/PATH``, a folder inside the import package NAME, which is found
            but not imported (importing it may load torch); or a name on the hub, where one without an owner is of
            ``sentence-transformers``, as in that library.
        revision: A branch, tag or commit on the hub.
        weights: Fetch the weights too, not only the files that describe the model.

    Raises:
        ConfigError: There is no such model; what was looked for, and where.
    """
    if model.startswith("package:"):
        return _in_package(model.removeprefix("package:"))
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if not _HUB_NAME.fullmatch(model) or model.startswith("."):
        raise ConfigError(f"model: there is no folder {model!r} (seen from {Path.cwd()}), and no hub has such a name")
    return _from_hub(model if "/" in model else f"sentence-transformers/{model}", revision, weights=weights)


def _in_package(place: str) -> Path:
    name, _, path = place.partition("/")
    if not name.isidentifier():  # also a dotted name: finding it would import its parent
        raise ConfigError(f"model: package:{place} does not begin with the name of an import package")
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f"model: the package {name} is not installed: install it (the demo models: "
            "pip install 'milvus-ingestd[demo]'), or give a folder or a hub name"
        )
    folders = [Path(root) / path for root in spec.submodule_search_locations]
    for folder in folders:
        if folder.is_dir():
            return folder
    raise ConfigError(f"model: the package {name} has no folder {path!r} (looked for {folders[0]})")


def _from_hub(name: str, revision: str | None, *, weights: bool) -> Path:
    # Only here: a model from a folder needs no HTTP client.
    from huggingface_hub import constants, snapshot_download  # noqa: PLC0415
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError  # noqa: PLC0415

    def fetch(patterns: list[str]) -> Path:
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=patterns, ignore_patterns=_OTHER_BACKENDS)
        )

    try:
        folder = fetch(_DESCRIPTIONS + (_SAFE_WEIGHTS + _HEADS if weights else []))
        if weights and not any(folder.rglob("*.safetensors")):
            folder = fetch(_DESCRIPTIONS + _OLD_WEIGHTS + _HEADS)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        at = f" at revision {revision}" if revision else ""
        where = "among the downloaded models (HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else "on the hub"
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"model: there is no folder {name!r}, and no model of that name was found {where}{at} ({reason})"
        ) from error
    return folder
