"""What ``make run-kafka`` runs: a broker from its package, the sample documents on its topic, and the daemon on them.

The broker keeps everything in memory and ends with the daemon, however that ends; Ctrl-C reaches the daemon from the
terminal, which drains, and this process only waits for it. So each start has a new broker beside the state of the last
one, and a cluster id of its own says so: offsets that begin again are no old versions of the same topic.

    python -m tests.tools.run_kafka
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import NoReturn

CONFIG, SAMPLES = "config/kafka-quickstart.toml", "config/samples"
TOPIC, COLLECTION = "documents", "articles"
USUAL_PORT = 9092
SERVERS = "INGESTD_SOURCES__CMS__BOOTSTRAP_SERVERS"
"""The variable that says where the broker is, in place of the configuration."""
QUERY = "how do I keep my plants alive while I am travelling"
INGESTD = (sys.executable, "-m", "ingestd")
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> int:
    """Run all of it, and return the daemon's exit code."""
    for number in _heard():  # before anything is there that would be left behind
        signal.signal(number, _leave)
    with tempfile.TemporaryDirectory(prefix="ingestd-kafka-") as folder, _broker(Path(folder)) as bootstrap:
        variables = {SERVERS: json.dumps([bootstrap]), "HF_HUB_OFFLINE": "1"}
        produced = ("produce", "--topic", TOPIC, "--create", "--partitions", "2", SAMPLES, "--config", CONFIG)
        done = subprocess.run([*INGESTD, *produced], env=os.environ | variables, check=False)
        if done.returncode:
            return done.returncode
        print(told(bootstrap), flush=True)  # noqa: T201 - what a person is told
        return _daemon(variables)


def _heard() -> list[signal.Signals]:
    """Return the signals that are not ignored: under nohup a hang-up ends nobody."""
    return [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]


def _leave(number: int, _frame: object) -> NoReturn:
    """End as a shell says that a signal ended a program, having closed and removed what was begun."""
    raise SystemExit(128 + number)


@contextlib.contextmanager
def _broker(folder: Path) -> Iterator[str]:
    from tests.fixtures.brokers import Tansu, free_port  # noqa: PLC0415 - a second of imports: the signals come first

    port = USUAL_PORT if _is_free(USUAL_PORT) else free_port()
    broker = Tansu(folder, port=port, cluster_id=f"run-kafka-{os.getpid()}-{uuid.uuid4()}")
    try:
        yield broker.start().bootstrap
    finally:
        broker.kill()


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def _daemon(variables: Mapping[str, str]) -> int:
    """Run the daemon in the foreground until it ends; what asks us to end is passed on to it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # until there is somebody to pass them on to
    daemon = subprocess.Popen([*INGESTD, "run", "--config", CONFIG], env=os.environ | dict(variables))

    def pass_on(number: int, _frame: object) -> None:
        # A signal that the terminal sent to all of us as well is one that the daemon takes for the same.
        daemon.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in _heard()}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    try:
        return daemon.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if daemon.poll() is None:
            daemon.kill()
            daemon.wait()


def told(bootstrap: str) -> str:
    """Return what a person is told once the samples are on the topic."""
    first = ""
    if not bootstrap.endswith(f":{USUAL_PORT}"):
        first = f"""\
Port {USUAL_PORT} is taken, so the broker has another. In each shell in which you run the README's commands, first:
  export {SERVERS}={shlex.quote(json.dumps([bootstrap]))}
"""
    page = os.environ.get("INGESTD_HTTP__LISTEN", "127.0.0.1:8321")
    return f"""\
The sample documents are on the topic {TOPIC} of a broker at {bootstrap}, which keeps them in memory: they go with it.
How the daemon is doing: http://{page}/   Stop it, and the broker, with Ctrl-C.
{first}When that page says that all is well, search in another terminal:
  .venv/bin/ingestd search {COLLECTION} "{QUERY}" --config {CONFIG}
and put documents of your own on the topic:
  .venv/bin/ingestd produce --topic {TOPIC} --bootstrap {bootstrap} FILE"""


if __name__ == "__main__":
    sys.exit(main())
