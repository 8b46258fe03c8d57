"""Who may open an association."""

from __future__ import annotations

import pytest

from hipscore.addresses import Peer, Sender
from hipscore.listener.door import (
    CALLED_TITLE_UNKNOWN,
    CALLING_TITLE_UNKNOWN,
    Door,
    open_to_the_network,
    peers,
)
from hipscore.settings import Settings


def settings(**more: object) -> Settings:
    return Settings.model_validate({"dicom_host": "0.0.0.0", **more})  # noqa: S104 - not bound


def verdict(
    door: Door, calling: str = "SCANNER", address: str = "10.0.0.7", called: str = "HIPSCORE"
) -> tuple[int, int, int] | None:
    return door.rejection(calling=calling, called=called, address=address)


@pytest.mark.parametrize(
    ("host", "open_"),
    (
        ("127.0.0.1", False),
        ("127.8.8.8", False),
        ("::1", False),
        ("localhost", False),
        ("0.0.0.0", True),  # noqa: S104 - a comparison
        ("::", True),
        ("10.0.0.1", True),
        ("hip.example.org", True),
    ),
)
def test_what_is_open_to_the_network(host: str, open_: bool) -> None:
    assert open_to_the_network(settings(dicom_host=host)) is open_


def test_a_sender_is_a_title_at_an_address() -> None:
    door = Door(settings(senders="SCANNER@10.0.0.7"))
    assert verdict(door) is None
    assert verdict(door, address="10.0.0.8") == CALLING_TITLE_UNKNOWN
    assert verdict(door, calling="OTHER") == CALLING_TITLE_UNKNOWN


def test_networks_and_any_title() -> None:
    door = Door(settings(senders="*@10.1.0.0/16, SCANNER@2001:db8::/32"))
    assert verdict(door, calling="ANYTHING", address="10.1.200.3") is None
    assert verdict(door, address="10.2.0.1") == CALLING_TITLE_UNKNOWN
    assert verdict(door, address="2001:db8::7") is None
    assert verdict(door, calling="OTHER", address="2001:db8::7") == CALLING_TITLE_UNKNOWN


def test_an_ipv4_peer_on_an_ipv6_socket_is_itself() -> None:
    assert verdict(Door(settings(senders="SCANNER@10.0.0.7")), address="::ffff:10.0.0.7") is None


def test_a_host_name_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def answer(name: str, *_: object, **__: object) -> list[tuple[int, int, int, str, object]]:
        asked.append(name)
        return [(2, 1, 6, "", ("10.0.0.7", 0))]

    monkeypatch.setattr("hipscore.listener.door.socket.getaddrinfo", answer)
    door = Door(settings(senders="SCANNER@mr1.example.org"))
    assert verdict(door) is None
    assert verdict(door, address="10.0.0.8") == CALLING_TITLE_UNKNOWN
    assert asked == ["mr1.example.org"]  # once: the answer is kept for a while


def test_a_name_that_is_not_known_lets_nobody_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no such name")

    monkeypatch.setattr("hipscore.listener.door.socket.getaddrinfo", fail)
    assert verdict(Door(settings(senders="SCANNER@mr1.example.org"))) == CALLING_TITLE_UNKNOWN


def test_destinations_may_send_too() -> None:
    door = Door(settings(destinations="PACS@10.0.0.5:104", query_peer="QR@10.0.0.6:104"))
    assert verdict(door, calling="PACS", address="10.0.0.5") is None
    assert verdict(door, calling="QR", address="10.0.0.6") is None
    assert verdict(door) == CALLING_TITLE_UNKNOWN


def test_this_machine_may_always() -> None:
    door = Door(settings(senders="SCANNER@10.0.0.7"))
    assert verdict(door, calling="ANY", address="127.0.0.1") is None
    assert verdict(door, calling="ANY", address="::1") is None


def test_on_loopback_any_title_may_be_called() -> None:
    assert verdict(Door(settings(dicom_host="127.0.0.1")), address="127.0.0.1", called="X") is None


def test_on_the_network_only_our_own_title_is_answered() -> None:
    door = Door(settings(senders="*@10.0.0.0/8"))
    assert verdict(door) is None
    assert verdict(door, called="ANY-SCP") == CALLED_TITLE_UNKNOWN
    assert verdict(door, called="ANY-SCP", address="127.0.0.1") == CALLED_TITLE_UNKNOWN


def test_several_titles_or_any() -> None:
    door = Door(settings(senders="*@10.0.0.0/8", called_ae_titles="HIPS,HIPSCORE2"))
    assert verdict(door, called="HIPSCORE2") is None
    assert verdict(door, called="HIPSCORE") == CALLED_TITLE_UNKNOWN
    anything = Door(settings(senders="*@10.0.0.0/8", called_ae_titles="*"))
    assert verdict(anything, called="ANY-SCP") is None


def test_an_address_that_cannot_be_read_is_turned_away() -> None:
    assert verdict(Door(settings(senders="*@0.0.0.0/0")), address="") == CALLING_TITLE_UNKNOWN


def test_peers_are_senders_and_destinations() -> None:
    made = settings(senders="A@10.0.0.1", destinations="PACS@pacs.example.org:104")
    assert made.destinations == (Peer(ae_title="PACS", host="pacs.example.org", port=104),)
    assert peers(made) == (
        Sender(ae_title="A", host="10.0.0.1"),
        Sender(ae_title="PACS", host="pacs.example.org"),
    )


@pytest.mark.parametrize(
    "text", ("SCANNER", "@10.0.0.1", "SCANNER@", "SCANNER@a b", "A\\B@10.0.0.1", "A@10.0.0.0/33")
)
def test_what_is_no_sender_is_refused_with_the_text(text: str) -> None:
    with pytest.raises(ValueError, match=r"AET@HOST|AE title"):
        Sender.parse(text)


def test_an_address_without_any_peer_is_no_peer() -> None:
    door = Door(settings(senders="SCANNER@10.0.0.7", destinations="PACS@10.1.0.5:104"))
    assert door.knows("10.0.0.7")
    assert door.knows("10.1.0.5")
    assert door.knows("127.0.0.1")
    assert not door.knows("10.0.0.8")
    assert not door.knows("")


def test_a_host_is_known_by_its_address() -> None:
    door = Door(settings(senders="SCANNER@10.0.0.7"))
    assert door.is_at("10.0.0.9", "10.0.0.9")
    assert door.is_at("10.0.0.0/24", "10.0.0.9")
    assert not door.is_at("10.0.0.9", "10.0.0.8")
