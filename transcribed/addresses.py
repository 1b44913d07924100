"""Network addresses: who is on this machine, and who counts as one."""

from __future__ import annotations

import ipaddress

NETWORK_BITS = 64
"""Of an IPv6 address, so many bits are what a provider gives to one customer."""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a port on the address `host`."""
    if host == "localhost":
        return True
    try:
        return _plain(host).is_loopback
    except ValueError:
        return False


def _plain(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    address = ipaddress.ip_address(host.split("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def source(peer: object) -> str | None:
    """What counts as one address: an IPv4 address, or an IPv6 network; None for a unix socket.

    :param peer: an address of Twisted's, as of ``transport.getPeer()``.
    """
    host = getattr(peer, "host", None)
    if host is None:
        return None
    try:
        address = _plain(host)
    except ValueError:
        return str(host)
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    return str(ipaddress.ip_network((int(address), NETWORK_BITS), strict=False))
