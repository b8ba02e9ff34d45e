"""The command ``ingestd``."""

from __future__ import annotations

import gc
import os

from ingestd.ops.image import Image
from ingestd.ops.signals import hold


def main() -> None:
    """Run the command line."""
    hold()  # libraries start threads while they are imported
    image = Image.now(os.environ)
    gc.disable()  # what is made while they are imported stays
    from ingestd.cli.main import main as command  # noqa: PLC0415 - it imports them

    gc.freeze()
    gc.enable()
    command(obj=image)


if __name__ == "__main__":
    main()
