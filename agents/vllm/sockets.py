"""Who listens at a port of this machine."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

from agents.errors import ServingError

_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_LISTENING = "0A"


def free_port(host: str = "127.0.0.1") -> int:
    """A port of `host` on which nobody listens now."""
    with _bound(host, 0) as bound:
        return int(bound.getsockname()[1])


def check_port(host: str, port: int) -> None:
    """Whether a server could listen there.

    Raises:
        ServingError: Somebody else does, or the address is not one of this machine.
    """
    try:
        _bound(host, port).close()
    except OSError as error:
        raise ServingError(
            f"cannot listen on {host} port {port}: {error.strerror}. Choose another port (0: any that is"
            " free), or stop what listens there"
        ) from error


def listens(processes: Iterable[int], port: int) -> bool | None:
    """Whether one of these processes listens at `port`; None where the system does not tell.

    Two servers that start at the same time can both bind a port before either listens there; then one of them
    answers for both.
    """
    sockets = {f"socket:[{inode}]" for inode in _listening(port)}
    if not sockets:
        return None
    return any(link in sockets for pid in processes for link in _open_files(pid))


def _bound(host: str, port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    # as the server does: a port is free although connections of an earlier server still fade away
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound


def _listening(port: int) -> Iterator[str]:
    """Inodes of the sockets that listen at `port`, of whatever address."""
    for table in _TABLES:
        with contextlib.suppress(OSError):
            for line in table.read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                    yield fields[9]


def _open_files(pid: int) -> Iterator[str]:
    folder = Path(f"/proc/{pid}/fd")
    with contextlib.suppress(OSError):  # it has ended
        for entry in folder.iterdir():
            with contextlib.suppress(OSError):  # it was closed meanwhile
                yield str(entry.readlink())
