"""The kind of file system that a path is on: inotify sees what this kernel does, and nothing that another one does.

Read from the kernel's mount table: ``statfs``'s numbers would need a C structure that differs between architectures,
and a second table to turn them into names for people.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

_NETWORK = frozenset(
    {
        *("9p", "afs", "beegfs", "ceph", "cifs", "coda", "drvfs", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs"),
        *("nfs", "nfs4", "ocfs2", "orangefs", "pvfs2", "smb3", "smbfs", "vboxsf", "virtiofs", "vmhgfs"),
    }
)


def file_system(path: bytes, table: Path = Path("/proc/self/mountinfo")) -> str | None:
    """Return the type of the file system that a path is on, or None where the kernel does not say."""
    real = os.path.realpath(path)
    kind, longest = None, -1
    try:
        lines = table.read_bytes().splitlines()
    except OSError:
        return None
    for line in lines:
        before, _, after = line.partition(b" - ")
        point = re.sub(rb"\\([0-7]{3})", lambda match: bytes((int(match[1], 8),)), before.split(b" ")[4])
        covers = real == point or real.startswith(point.rstrip(b"/") + b"/")
        if covers and len(point) >= longest:  # a later mount on the same point hides the earlier one
            kind, longest = after.split(b" ")[0].decode("ascii", "replace"), len(point)
    return kind


def is_network(kind: str | None) -> bool:
    """Return whether changes on such a file system can come from another machine (or process: FUSE)."""
    return kind is not None and (kind in _NETWORK or kind == "fuse" or kind.startswith("fuse."))
