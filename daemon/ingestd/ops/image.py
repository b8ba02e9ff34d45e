"""The process replaces its own image: the same program, begun again in the same process (execve(2)).

Owns what has to be as it was at the start: the command line, interpreter's options included, the environment before we
took anything out of it, and the descriptors that whoever started us left open. All others are closed by the kernel.
Signals that are blocked stay pending over it (``signals``). Starting a new process and handing over to it was turned
down: systemd's main process, a container's process 1 and a shell's job would be another one, and two would want the
state at a time.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping, Sequence

_RELOADS = "_INGESTD_RELOADS"
"""What the last image has to say to the next one. Not ``INGESTD_…``: those are keys of the configuration."""
_DESCRIPTORS = Path("/proc/self/fd")
_STANDARD = frozenset({0, 1, 2})

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Reloads:
    """What became of the wishes for a new configuration, over all images of the process."""

    applied: int = 0
    refused: int = 0


@dataclass(frozen=True, slots=True)
class Image:
    """How the process was started, and so how it is started again."""

    command: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)
    descriptors: frozenset[int]
    """Open at the start: ours to leave open."""
    reloads: Reloads = Reloads()

    @staticmethod
    def now(environment: MutableMapping[str, str]) -> Image:
        """Return how this process was started. For its first moments: what is opened later is not to be inherited.

        Args:
            environment: What the last image left for this one is taken out.
        """
        said = environment.pop(_RELOADS, None)
        # argv[0] may be a bare name, and what PATH finds for it another interpreter by then.
        command = (sys.executable, *sys.orig_argv[1:])
        return Image(command, dict(environment), _STANDARD | frozenset(_open_descriptors()), _told(said))

    def faults(self) -> Sequence[str]:
        """Return why the program could not be started again, if so."""
        found = []
        try:
            Path.cwd()
        except OSError as error:
            found.append(f"the working directory is gone ({error.strerror}), and relative paths lead nowhere")
        if not os.access(self.command[0], os.X_OK):
            found.append(f"{self.command[0] or 'the interpreter'} cannot be executed: was Python removed or replaced?")
        script = Path(sys.argv[0])  # of a module too: its file
        if len(script.parts) > 1 and not script.exists():
            found.append(f"{script} is gone: was the program removed or replaced?")
        return found

    def replace(self, reloads: Reloads) -> None:
        """Begin again. Returns only where that cannot be done, having said why.

        The caller has closed what it owns, and holds the signals.

        Args:
            reloads: For the next image to know.
        """
        environment = {**self.environment, _RELOADS: json.dumps(asdict(reloads))}
        with contextlib.suppress(OSError):  # nobody reads it any more
            sys.stdout.flush()
        self._close_later()
        try:
            os.execve(self.command[0], self.command, environment)  # noqa: S606 - our own program, without a shell
        except OSError as error:
            log.error(  # noqa: TRY400 - the traceback is this line
                "the program cannot be started again, and the process ends", command=self.command, error=str(error)
            )

    def _close_later(self) -> None:
        """Have the kernel close at the exec what a library opened without saying so, or did not close in time."""
        for descriptor in set(_open_descriptors()) - self.descriptors:
            with contextlib.suppress(OSError):  # a thread that is still ending has closed it
                os.set_inheritable(descriptor, False)


def _told(said: str | None) -> Reloads:
    """Return what the last image said: it may have been one of another version."""
    known = json.loads(said) if said is not None else {}
    return Reloads(applied=int(known.get("applied", 0)), refused=int(known.get("refused", 0)))


def _open_descriptors() -> list[int]:
    """Return the open descriptors, less the one that lists them."""
    found = []
    for entry in list(_DESCRIPTORS.iterdir()):
        with contextlib.suppress(OSError):
            os.fstat(int(entry.name))
            found.append(int(entry.name))
    return found
