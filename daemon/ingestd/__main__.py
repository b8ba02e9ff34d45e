"""The command ``ingestd``."""

from __future__ import annotations

import os

from ingestd.ops.image import Image
from ingestd.ops.signals import hold


def main() -> None:
    """Run the command line."""
    hold()  # libraries start threads while they are imported
    image = Image.now(os.environ)
    from ingestd.cli.main import main as command  # noqa: PLC0415 - it imports them

    command(obj=image)


if __name__ == "__main__":
    main()
