"""Addresses that no upstream may have, whatever a name resolves to.

The check is of the address that is connected to, after the name was resolved: a name that pointed
elsewhere when somebody looked (DNS rebinding) gains nothing.
"""

from __future__ import annotations

import ipaddress
from typing import Final

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Where clouds answer with a machine's own credentials. Not all of link-local: two Macs on one
# cable talk by it.
_METADATA: Final = (
    ipaddress.ip_network("169.254.169.0/24"),
    ipaddress.ip_network("169.254.170.0/24"),
    ipaddress.ip_network("fd00:ec2::254/128"),
    ipaddress.ip_network("fe80::a9fe:a9fe/128"),
)
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
_LOW_32: Final = 0xFFFF_FFFF


def plain(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 address stands for, if it does, else itself."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address.sixtofour is not None:
            return address.sixtofour
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & _LOW_32)
    return address


def is_metadata(address: Address) -> bool:
    """Tell whether a cloud's metadata service may be there."""
    found = plain(address)
    return any(found.version == network.version and found in network for network in _METADATA)


def may_connect(address: str) -> bool:
    """Tell whether a connection to this resolved address may be made; False if it is none."""
    try:
        return not is_metadata(ipaddress.ip_address(address.partition("%")[0]))
    except ValueError:
        return False
