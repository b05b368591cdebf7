# SPDX-License-Identifier: Apache-2.0
"""
Decides which IP addresses are on the public internet.

Uses its own list: ``ipaddress.is_global`` differs between Python releases, and ignores the IPv4 addresses that translators
and tunnels extract from IPv6 addresses. Source: IANA's special-purpose address registries, October 2026.
"""

from __future__ import annotations

import ipaddress
import socket
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address

_NOT_PUBLIC_IPV4 = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",  # this network
            "10.0.0.0/8",  # private
            "100.64.0.0/10",  # carrier-grade NAT
            "127.0.0.0/8",  # loopback
            "168.63.129.16/32",  # Azure platform services
            "169.254.0.0/16",  # link-local, and metadata services
            "172.16.0.0/12",  # private
            "192.0.0.0/24",  # protocol assignments, and Oracle's metadata service
            "192.0.2.0/24",  # documentation
            "192.88.99.0/24",  # 6to4 relays
            "192.168.0.0/16",  # private
            "198.18.0.0/15",  # benchmarks
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, and broadcast
        ),
    )
)
# Anything outside it is private, link-local, multicast, or reserved.
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_NOT_PUBLIC_IPV6 = tuple(
    map(
        IPv6Network,
        (
            "2001::/23",  # protocol assignments
            "2001:db8::/32",  # documentation
            "3fff::/20",  # documentation
        ),
    )
)

_COMPATIBLE = IPv6Network("::/96")
_NAT64 = IPv6Network("64:ff9b::/96")
_LOCAL_NAT64 = IPv6Network("64:ff9b:1::/48")
_6TO4 = IPv6Network("2002::/16")
_TEREDO = IPv6Network("2001::/32")
_ISATAP = (bytes.fromhex("00005efe"), bytes.fromhex("02005efe"))


def address_of(host: str) -> Address | None:
    """Parse a host as an IP address, in any notation that an operating system accepts; return None for a name."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
        # ::ffff:10.0.0.1 is 10.0.0.1 on the wire.
        return getattr(address, "ipv4_mapped", None) or address
    except ValueError:
        pass
    try:
        # 127.1, 0x7f000001 and 2130706433 are 127.0.0.1.
        return IPv4Address(socket.inet_aton(host))
    except (OSError, ValueError):
        return None


def is_public(address: Address) -> bool:
    """Return whether an address is on the public internet; for an IPv6 address, check any IPv4 addresses embedded in it."""
    return all(map(_is_public, embedded_addresses(address)))


def embedded_addresses(address: Address) -> tuple[Address, ...]:
    """Return the IPv4 addresses embedded in an IPv6 address, or else the address itself."""
    if isinstance(address, IPv4Address):
        return (address,)
    octets = address.packed
    if any(address in network for network in (_COMPATIBLE, _NAT64)):
        return (IPv4Address(octets[12:]),)
    if address in _LOCAL_NAT64:
        # A translator's prefix has 96 bits, or these 48: then the IPv4 address is split around octet 8 (RFC 6052).
        early = octets[6:8] + octets[9:11]
        return (IPv4Address(octets[12:]), *([IPv4Address(early)] if any(early) else []))
    if address in _6TO4:
        return (IPv4Address(octets[2:6]),)
    if address in _TEREDO:
        # The server's address, and the client's with all bits inverted.
        return IPv4Address(octets[4:8]), IPv4Address(bytes(octet ^ 0xFF for octet in octets[12:]))
    if octets[8:12] in _ISATAP:
        return (address, IPv4Address(octets[12:]))
    return (address,)


def _is_public(address: Address) -> bool:
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_IPV4)
    return address in _GLOBAL_UNICAST and not any(address in network for network in _NOT_PUBLIC_IPV6)
