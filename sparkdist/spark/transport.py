"""What stands between a job and its result besides the work."""

import os
import socket
import stat

__all__ = ["acknowledge_at_once"]

_QUICKACK = getattr(socket, "TCP_QUICKACK", None)  # Linux only


def acknowledge_at_once() -> None:
    """Let the task's input arrive now instead of 40 ms later; call it before reading any.

    The JVM sends a task and then its input over a loopback TCP socket.  Nagle's algorithm
    holds the input back until the first segment is acknowledged, and Linux delays that
    acknowledgement by 40 ms because this process has nothing to say: a job that does nothing
    took 85 ms with it and 45 ms without.  The socket is not within reach of a task's code, so
    every TCP socket of this worker is told to acknowledge at once; the kernel takes the
    request as a hint for the next segments only, and nothing else changes.
    """
    if _QUICKACK is None or not os.path.isdir("/proc/self/fd"):
        return
    for name in os.listdir("/proc/self/fd"):
        try:
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                _hint(int(name))
        except OSError:  # closed since it was listed, as the listing's own descriptor is
            continue


def _hint(descriptor: int) -> None:
    with socket.socket(fileno=os.dup(descriptor)) as connection:
        if connection.family in (socket.AF_INET, socket.AF_INET6):
            connection.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)  # type: ignore[arg-type]
