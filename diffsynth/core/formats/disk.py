"""Which disk a file lies on: mapping a file of a network disk can stop the program when the network does."""

from __future__ import annotations

from pathlib import Path

NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "9p", "afs", "ncpfs"}
)
MOUNTS = Path("/proc/self/mountinfo")


def on_network_disk(path: Path, mounts: Path = MOUNTS) -> bool:
    """Whether a file lies on a network file system, as far as the system tells.

    Args:
        path: the file.
        mounts: the table of mounted file systems (proc(5), mountinfo); systems without one answer no.
    """
    try:
        lines = mounts.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return False
    target = path.resolve()
    best, kind = -1, ""
    for line in lines:
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if len(fields) < 5 or not after:
            continue
        mount = Path(_unescaped(fields[4]))
        depth = len(mount.parts)
        if depth >= best and target.is_relative_to(mount):
            best, kind = depth, after.split(" ", 1)[0]
    return kind in NETWORK_FILE_SYSTEMS or kind.startswith("fuse.")


def _unescaped(field: str) -> str:
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(code, char)
    return field
