"""Addresses to which a client's URL may lead the server: public ones, and networks that the operator allows."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any

from vllm.logger import init_logger

from duet_server.api.option_types import Network

logger = init_logger(f"vllm.{__name__}")

_NOT_PUBLIC = (
    IPv4Network("192.0.0.0/24"),  # for protocols; includes a cloud's metadata service
    IPv4Network("168.63.129.16/32"),  # another cloud's metadata service, at a public address
    IPv4Network("192.88.99.0/24"),  # relays to IPv6
    IPv6Network("3fff::/20"),  # for documentation
)
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")
_TUNNELS = (IPv6Network("2001::/23"), IPv6Network("2002::/16"))  # Teredo and similar protocols, 6to4


class NotPublicError(Exception):
    """A client's URL leads to an address or host that is not allowed."""


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether an address is public: not private, loopback, link-local, reserved or of a metadata service."""
    if isinstance(address, IPv6Address):
        if address not in _GLOBAL_UNICAST or any(address in tunnel for tunnel in _TUNNELS):
            return False
    elif any(address in network for network in _NOT_PUBLIC):
        return False
    return address.is_global and not address.is_multicast


def carried_address(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address inside a mapped or NAT64 IPv6 address; any other address as it is."""
    if isinstance(address, IPv4Address):
        return address
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address


def checked_socket(address_info: tuple[Any, ...], allowed: Sequence[Network]) -> socket.socket:
    """A socket for the address that it will connect to. DNS is already resolved and cannot change it.

    Args:
        address_info: one result of ``socket.getaddrinfo``.
        allowed: networks that are allowed although they are not public.

    Raises:
        NotPublicError: if the address is neither public nor allowed.
    """
    family, kind, protocol, _, target = address_info
    address = carried_address(ip_address(target[0]))  # ValueError for other notations, which a socket accepts
    if not is_public(address) and not any(address in network for network in allowed):
        logger.warning("A request for media from %s is refused: the address is not public.", address)
        raise NotPublicError
    return socket.socket(family, kind, protocol)
