"""Who may open an association: known AE titles at known addresses (PS3.15 is for the rest).

Without any peer in the settings only this machine may. AE titles are no proof of identity;
they keep a misconfigured neighbour out, the address keeps out whoever guesses a title.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from typing import TypeAlias

from hipscore.addresses import Sender
from hipscore.keeping.rules import load_rules
from hipscore.keeping.rules import peers as destination_peers
from hipscore.settings import Settings

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

#: a name is looked up again after so many seconds: container and DHCP addresses change
_FRESH_S = 30.0

#: PS3.8 table 9-21: result, source, reason
CALLING_TITLE_UNKNOWN = (0x01, 0x01, 0x03)
CALLED_TITLE_UNKNOWN = (0x01, 0x01, 0x07)


def open_to_the_network(settings: Settings) -> bool:
    """Whether the listener binds to more than this machine."""
    host = settings.dicom_host
    try:
        return not ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host != "localhost"


def peers(settings: Settings) -> tuple[Sender, ...]:
    """Senders, and the peers we talk to ourselves: commitment is reported by them."""
    ours = destination_peers(settings, load_rules(settings))
    known = [*ours, *([settings.query_peer] if settings.query_peer else [])]
    return (
        *settings.senders,
        *(Sender(ae_title=peer.ae_title, host=peer.host.lower()) for peer in known),
    )


class Door:
    """Decides on each association request. Thread safe."""

    def __init__(self, settings: Settings) -> None:
        self._peers = peers(settings)
        titles = settings.called_ae_titles
        if not titles:
            titles = (settings.ae_title,) if open_to_the_network(settings) else ("*",)
        self._called = frozenset(titles)
        self._names: dict[str, tuple[float, frozenset[Address]]] = {}
        self._lock = threading.Lock()

    def knows(self, address: str) -> bool:
        """Whether any peer has this address, under whatever title."""
        where = _address(address)
        if where is None:
            return False
        return where.is_loopback or any(self._at(peer.host, where) for peer in self._peers)

    def rejection(self, *, calling: str, called: str, address: str) -> tuple[int, int, int] | None:
        """Result, source and reason of an A-ASSOCIATE-RJ (PS3.8 9.3.4); None lets it in."""
        if not {called, "*"} & self._called:
            return CALLED_TITLE_UNKNOWN
        where = _address(address)
        if where is None:
            return CALLING_TITLE_UNKNOWN
        if where.is_loopback:
            return None
        known = any(
            peer.ae_title in {calling, "*"} and self._at(peer.host, where) for peer in self._peers
        )
        return None if known else CALLING_TITLE_UNKNOWN

    def is_at(self, host: str, address: str) -> bool:
        """Whether the address is that of this host (name, address or network)."""
        where = _address(address)
        return where is not None and self._at(host.lower(), where)

    def _at(self, host: str, where: Address) -> bool:
        network = _network(host)
        return where in network if network is not None else where in self._look_up(host)

    def _look_up(self, name: str) -> frozenset[Address]:
        with self._lock:
            until, found = self._names.get(name, (0.0, frozenset()))
        if time.monotonic() < until:
            return found
        try:
            answers = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except OSError:
            answers = []  # unknown now; asked again when it is fresh no more
        found = frozenset(
            each for answer in answers if (each := _address(str(answer[4][0]))) is not None
        )
        with self._lock:
            self._names[name] = (time.monotonic() + _FRESH_S, found)
        return found


def _address(text: str) -> Address | None:
    """The address; an IPv4 one that came over an IPv6 socket as what it is."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _network(text: str) -> Network | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None
