"""Reach: can this machine talk to the model server?  Asked from an executor before training."""

from __future__ import annotations

import socket

import requests

from sparkdist.client.protocol import Address

__all__ = ["unreachable"]

_SECONDS = 10.0


def unreachable(address: Address) -> str | None:
    """Return what is wrong with the way to the server, in a sentence, or None."""
    if address.certificate is not None:
        return _no_connection(address)
    session = requests.Session()
    session.trust_env = False  # no proxy between Spark's own addresses
    try:
        url = f"http://{address.host}:{address.port}/healthz"
        answer = session.get(url, timeout=_SECONDS)
    except requests.RequestException as error:
        return _sentence(address, type(error).__name__)
    return None if answer.ok else _sentence(address, f"status {answer.status_code}")


def _no_connection(address: Address) -> str | None:
    """Try the port alone: the certificate is checked by the client, on the first request."""
    try:
        socket.create_connection((address.host, address.port), _SECONDS).close()
    except OSError as error:
        return _sentence(address, str(error))
    return None


def _sentence(address: Address, what: str) -> str:
    return (
        f"{socket.gethostname()} cannot reach the model server at {address.host}:{address.port}"
        f" ({what}): set spark.driver.host to an address of the driver that executors can reach,"
        " and let them through its firewall"
    )
