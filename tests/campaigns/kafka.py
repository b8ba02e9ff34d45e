"""The campaign for Kafka: a topic of edits, deletes and bad records, and a group that is killed, changed and stopped.

It shows that the Kafka source loses nothing and invents nothing. Whatever happens to the members, afterwards Milvus
holds what the topic's last good records say, the dead letters are the bad records, and the group has committed all.
``make test`` has short forms of this. Prints one JSON object a step; ends with 0 when every claim held and enough
happened to show it, and with a traceback at the first that did not.

    python -m tests.campaigns.kafka --events 100000 --documents 20000 --scenario all
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from tests.campaigns.kafka_ground import WITHOUT, Wish
from tests.campaigns.kafka_scenes import SCENES

from ingestd.ops import log


def main() -> None:
    """Run the campaign that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--partitions", type=int, default=8)
    parser.add_argument("--broker", choices=["tansu", "noida"], default="tansu")
    parser.add_argument("--milvus", choices=["lite", "server"], default="lite")
    parser.add_argument("--scenario", choices=[*SCENES, "all"], default="all")
    parser.add_argument("--times", type=int, default=None, help="how often it kills, changes or stops")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--log-level", choices=["debug", "info"], default="info", help="of the members")
    parser.add_argument("--without", choices=WITHOUT, default=None, help="take this out of the daemons: it has to fail")
    parser.add_argument("--folder", type=Path, default=None, help="where to work, kept; default: a passing one")
    asked = parser.parse_args()
    log.configure("warning", json=True)  # of what is called here in place: the daemons have logs of their own
    wish = Wish(
        asked.events,
        asked.documents,
        asked.partitions,
        asked.broker,
        asked.milvus,
        asked.seed,
        asked.log_level,
        asked.without,
    )
    report("campaign", scenario=asked.scenario, **asdict(wish))
    with tempfile.TemporaryDirectory(prefix="campaign-") as passing:
        folder = asked.folder or Path(passing)
        for name, scene in SCENES.items():
            if asked.scenario in {name, "all"}:
                times = {} if asked.times is None else {"times": asked.times}
                report(name, **scene(wish, folder / name, report, **times))
    report("done")


def report(step: str, **said: object) -> None:
    """Print what a step says."""
    sys.stdout.write(json.dumps({"step": step, **said}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
