"""Where a group begins that has committed nothing yet, as the configuration says it (``placing`` goes there).

Apart, because reading a configuration must not import the client.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AfterValidator


def _offsets(value: dict[str, int]) -> dict[str, int]:
    for name, offset in value.items():
        topic, separator, partition = name.rpartition("/")
        if not separator or not topic or not partition.isdigit():
            raise ValueError(f'{name!r} is no partition; write it as "topic/0"')
        if offset < 0:
            raise ValueError(f"{name}: an offset is not negative")
    return value


def _time(value: datetime) -> datetime:
    return value if value.tzinfo is not None else value.replace(tzinfo=UTC)


Start = (
    Literal["earliest", "latest"]
    | Annotated[datetime, AfterValidator(_time)]
    | Annotated[dict[str, int], AfterValidator(_offsets)]
)
