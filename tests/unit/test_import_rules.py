"""What importing may do, and who may import whom: the rules that import-linter's contracts cannot say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

PLUG_IN_FOLDERS = ("sources", "extractors", "chunkers", "embedders", "sinks")
PACKAGE = Path(__file__).parents[2] / "daemon" / "ingestd"

IMPORT_EVERYTHING = """
import importlib, json, logging, pkgutil, sys, threading
import ingestd
walked = pkgutil.walk_packages(ingestd.__path__, "ingestd.")
names = [module.name for module in walked if not module.name.rpartition(".")[2].startswith("_")]
for name in names:
    importlib.import_module(name)
heavy = {"FlagEmbedding", "model2vec", "sentence_transformers", "torch", "transformers"}
ours = [handler for handler in logging.getLogger().handlers]
print(json.dumps({
    "modules": len(names),
    "heavy": sorted(heavy & sys.modules.keys()),
    "threads": [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()],
    "handlers": len(ours),
}))
"""


def test_importing_everything_does_nothing() -> None:
    """Importing every module loads no model library, starts no thread, and leaves logging alone.

    A module that begins with ``_`` counts where another one imports it: some are for the device workers alone.
    """
    done = subprocess.run([sys.executable, "-c", IMPORT_EVERYTHING], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found.pop("modules") > 10
    assert found == {"heavy": [], "threads": [], "handlers": 0}


@pytest.mark.parametrize("folder", PLUG_IN_FOLDERS)
def test_plug_ins_do_not_import_one_another(folder: str) -> None:
    """A plug-in is one file: it may share ``_name.py`` with its folder, and nothing with its siblings."""
    if not (PACKAGE / folder).is_dir():
        pytest.skip(f"there is no {folder} yet")
    graph = grimp.build_graph("ingestd", cache_dir=None)
    siblings = graph.find_children(f"ingestd.{folder}")
    crossed = {
        (importer, imported)
        for importer in siblings
        for imported in graph.find_modules_directly_imported_by(importer)
        if imported in siblings and not imported.rpartition(".")[2].startswith("_")
    }
    assert crossed == set()
