from __future__ import annotations

import socket
from ipaddress import ip_address, ip_network

import pytest

from duet_server.api.protection.public_addresses import NotPublicError, carried_address, checked_socket, is_public

PUBLIC = ["93.184.216.34", "1.1.1.1", "172.32.0.1", "2606:2800:220:1::1", "64:ff9b::101:101"]
CLOSED = [
    *("0.0.0.0", "10.1.2.3", "100.64.0.1", "127.0.0.1", "168.63.129.16", "169.254.169.254", "172.31.0.1"),
    *(
        "192.0.0.192",
        "192.0.2.1",
        "192.168.1.1",
        "198.18.0.1",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
    ),
    *("::", "::1", "::7f00:1", "::ffff:10.0.0.1", "::ffff:0:7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1"),
    *("100::1", "2001::1", "2001:db8::1", "2002:7f00:1::", "2002:101:101::", "fc00::1", "fd00:ec2::254", "fe80::1"),
    *("fe80::1%lo", "fec0::1", "ff02::1"),
]


def address_info(address, port=80):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return family, socket.SOCK_STREAM, 0, "", (address, port)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_accepted(address):
    assert is_public(carried_address(ip_address(address)))
    checked_socket(address_info(address), ()).close()


@pytest.mark.parametrize("address", CLOSED)
def test_addresses_that_are_not_public_are_refused(address):
    assert not is_public(carried_address(ip_address(address)))
    with pytest.raises(NotPublicError):
        checked_socket(address_info(address), ())


def test_allowed_networks_include_ipv4_addresses_inside_ipv6():
    networks = [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]
    for address in ("10.9.9.9", "::ffff:10.9.9.9", "64:ff9b::a09:909", "fd00::5"):
        checked_socket(address_info(address), networks).close()
    for address in ("127.0.0.1", "192.168.0.1", "fc00::1"):
        with pytest.raises(NotPublicError):
            checked_socket(address_info(address), networks)


@pytest.mark.parametrize("address", ["127.1", "2130706433", "0x7f.1", "localhost"])
def test_other_notations_are_no_addresses(address):
    with pytest.raises(ValueError, match="does not appear to be"):
        checked_socket(address_info(address), ())
