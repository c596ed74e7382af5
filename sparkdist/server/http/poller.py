"""Poller: waiting for many sockets in many threads, where each socket is told to one of them."""

from __future__ import annotations

import select
import sys

__all__ = ["Poller"]

if sys.platform == "linux":

    class Poller:
        """Sockets by their descriptors; one that is told is not told again until it is asked for.

        All methods may be called from any thread at any time; a socket that is closed is forgotten.
        """

        def __init__(self) -> None:
            self._epoll = select.epoll()

        def add(self, descriptor: int) -> None:
            """Wait for a new socket to have something to read."""
            self._epoll.register(descriptor, select.EPOLLIN | select.EPOLLONESHOT)

        def rearm(self, descriptor: int, event: int) -> None:
            """Wait once more, for ``select.POLLIN`` or ``select.POLLOUT``."""
            self._epoll.modify(descriptor, event | select.EPOLLONESHOT)

        def wait(self) -> int:
            """Return one that is ready, as soon as there is one."""
            while True:
                for descriptor, _ in self._epoll.poll(maxevents=1):
                    return descriptor

else:  # kqueue: macOS and BSD

    class Poller:
        """See above."""

        def __init__(self) -> None:
            self._kqueue = select.kqueue()

        def add(self, descriptor: int) -> None:
            """Wait for a new socket to have something to read."""
            self.rearm(descriptor, select.POLLIN)

        def rearm(self, descriptor: int, event: int) -> None:
            """Wait once more, for ``select.POLLIN`` or ``select.POLLOUT``."""
            what = select.KQ_FILTER_READ if event == select.POLLIN else select.KQ_FILTER_WRITE
            once = select.kevent(descriptor, what, select.KQ_EV_ADD | select.KQ_EV_ONESHOT)
            self._kqueue.control([once], 0)

        def wait(self) -> int:
            """Return one that is ready, as soon as there is one."""
            return int(self._kqueue.control(None, 1)[0].ident)
