"""Of pymilvus no more is imported than is used, and it works; each case in an interpreter of its own."""

from __future__ import annotations

import subprocess
import sys


def _run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_pymilvus_does_not_bring_pandas() -> None:
    """Nothing of pandas is loaded, and whoever imports it afterwards gets the real one."""
    found = _run(
        "import sys\n"
        "from ingestd.milvus.client import import_pymilvus\n"
        "import_pymilvus()\n"
        "assert 'pymilvus' in sys.modules\n"
        "print([name for name in sys.modules if name.partition('.')[0] == 'pandas'])\n"
        "import pandas\n"
        "print(pandas.DataFrame({'a': [1]}).a.sum())\n"
    )
    assert found.splitlines() == ["[]", "1"]


def test_functions_of_pandas_are_the_real_ones() -> None:
    """What pymilvus asks of pandas when it guesses a type is answered by pandas, loaded by then."""
    found = _run(
        "import sys\n"
        "from ingestd.milvus.client import import_pymilvus\n"
        "import_pymilvus()\n"
        "from pymilvus.orm.types import infer_dtype_bydata\n"
        "print(infer_dtype_bydata(1.5).name, infer_dtype_bydata([0.5, 0.25]).name, 'pandas' in sys.modules)\n"
    )
    assert found == "DOUBLE FLOAT_VECTOR True"


def test_pandas_that_is_there_already_is_used() -> None:
    """Where pandas was imported before, pymilvus gets it."""
    found = _run(
        "import pandas\n"
        "from ingestd.milvus.client import import_pymilvus\n"
        "import_pymilvus()\n"
        "import pymilvus.orm.schema as schema\n"
        "print(schema.pd is pandas)\n"
    )
    assert found == "True"


def test_a_module_that_needs_more_gets_pandas_itself() -> None:
    """A later pymilvus may use what the stand-in lacks: it is then imported as it always was."""
    found = _run(
        "import pathlib, sys, tempfile\n"
        "folder = pathlib.Path(tempfile.mkdtemp())\n"
        "(folder / 'greedy').mkdir()\n"
        "(folder / 'greedy' / '__init__.py').write_text('from greedy import deep')\n"
        "(folder / 'greedy' / 'deep.py').write_text('import pandas as pd; total = pd.Series([1, 2]).sum()')\n"
        "sys.path.insert(0, str(folder))\n"
        "from ingestd.milvus import lean\n"
        "lean.import_module('greedy')\n"
        "print(sys.modules['greedy.deep'].total)\n"
    )
    assert found == "3"


def test_pyarrow_does_not_bring_pandas_either() -> None:
    """Milvus Lite builds its arrays with pyarrow, which would load pandas for the first one."""
    found = _run(
        "import sys\n"
        "from ingestd.milvus.lean import keep_pandas_out\n"
        "keep_pandas_out()\n"
        "import numpy, pyarrow\n"
        "import pyarrow.compute\n"
        "table = pyarrow.table({'a': pyarrow.array([1, 2]), 'b': pyarrow.array(numpy.ones(2))})\n"
        "print(table.to_pylist(), [name for name in sys.modules if name.startswith('pandas.')])\n"
    )
    assert found == "[{'a': 1, 'b': 1.0}, {'a': 2, 'b': 1.0}] []"


def test_the_messages_are_imported_without_the_client() -> None:
    """Milvus Lite builds on those alone."""
    found = _run(
        "import sys\n"
        "from ingestd.milvus.lean import import_part\n"
        "import_part('pymilvus.grpc_gen')\n"
        "from milvus_lite.adapter.grpc.servicer import MilvusServicer\n"
        "from pymilvus.grpc_gen import milvus_pb2\n"
        "client = [name for name in sys.modules if name.startswith('pymilvus.client')]\n"
        "print(milvus_pb2.ConnectRequest.__name__, client)\n"
    )
    assert found == "ConnectRequest []"


def test_a_part_that_does_not_stand_alone_gets_its_package() -> None:
    """A later pymilvus may build its messages on more."""
    found = _run(
        "import pathlib, sys, tempfile\n"
        "folder = pathlib.Path(tempfile.mkdtemp())\n"
        "(folder / 'joined').mkdir()\n"
        "(folder / 'joined' / '__init__.py').write_text('word = 7')\n"
        "(folder / 'joined' / 'part.py').write_text('from joined import word')\n"
        "sys.path.insert(0, str(folder))\n"
        "from ingestd.milvus.lean import import_part\n"
        "import_part('joined.part')\n"
        "print(sys.modules['joined.part'].word, sys.modules['joined'].word)\n"
    )
    assert found == "7 7"
