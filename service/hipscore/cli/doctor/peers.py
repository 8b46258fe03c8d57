"""Everybody we talk to: our own listener and API, PACS, worklist, DICOMweb, HL7."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from urllib.parse import urlsplit

import httpx
from pydicom.uid import (
    UID,
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    EncapsulatedPDFStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    ModalityWorklistInformationFind,
    StorageCommitmentPushModel,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)

from hipscore import pacs
from hipscore.addresses import Destination, DicomWeb, Mllp, Peer
from hipscore.cli.doctor.finding import Finding, fault, good, note, warning
from hipscore.cli.doctor.machine import listens
from hipscore.keeping.rules import destinations, load_rules, peers
from hipscore.pacs.examine import examine
from hipscore.routing import Rules, receiver
from hipscore.settings import Settings, is_loopback

TIMEOUTS = pacs.Timeouts(connection=5.0, acse=10.0, dimse=10.0)
#: a certificate that ends within this many days is worth a warning
SOON_DAYS = 30

_RESULTS = {
    SegmentationStorage: "SEG",
    Comprehensive3DSRStorage: "Comprehensive 3D SR",
    ComprehensiveSRStorage: "Comprehensive SR",
    SecondaryCaptureImageStorage: "Secondary Capture",
    EncapsulatedPDFStorage: "encapsulated PDF",
}
_QUERY = {
    StudyRootQueryRetrieveInformationModelFind: "C-FIND",
    StudyRootQueryRetrieveInformationModelGet: "C-GET",
    StudyRootQueryRetrieveInformationModelMove: "C-MOVE",
}


def findings(settings: Settings) -> Iterator[Finding]:
    """Look at each in turn."""
    try:
        rules = load_rules(settings)
    except (OSError, ValueError):  # what is wrong with the rules was said already
        rules = Rules(artifacts={})
    yield from _ourselves(settings, rules)
    for each in destinations(settings, rules):
        yield from _destination(each, settings, rules)
    if settings.query_peer is not None:
        yield _query_peer(settings.query_peer, settings)
    if settings.worklist_peer is not None:
        yield _worklist(settings.worklist_peer, settings)


def _here(host: str) -> str:
    """Address at which what is bound to ``host`` is reached from this machine."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - a comparison


def _ourselves(settings: Settings, rules: Rules) -> Iterator[Finding]:
    us = Peer(ae_title=settings.ae_title, host=_here(settings.dicom_host), port=settings.dicom_port)
    # as a PACS would greet us
    callers = {each.ae_title for each in peers(settings, rules)} or {settings.ae_title}
    answers = [
        examine(us, (), calling_aet=caller, timeouts=TIMEOUTS).echo for caller in sorted(callers)
    ]
    if all(answer.delivered for answer in answers):
        names = ", ".join(sorted(callers))
        yield good("listener", f"{us} answers C-ECHO, called by {names}")
    else:
        text = next(answer.text for answer in answers if not answer.delivered)
        yield fault("listener", text, "start hipscore up (or listen); see its log")
    scheme = "https" if settings.http_certificate else "http"
    host = _here(settings.http_host)
    if listens(host, settings.http_port):
        yield good("API", f"{scheme}://{host}:{settings.http_port}/ accepts connections")
        if scheme == "http" and not is_loopback(settings.http_host) and not settings.http_proxies:
            yield warning(
                "API",
                "it is offered to others without encryption: keys and results can be read",
                "set HIPSCORE_HTTP_CERTIFICATE and HIPSCORE_HTTP_PRIVATE_KEY, or use a proxy",
            )
    else:
        yield fault(
            "API", f"nothing listens on {host}:{settings.http_port}", "start hipscore up (or serve)"
        )


def _destination(target: Destination, settings: Settings, rules: Rules) -> Iterator[Finding]:
    if isinstance(target, Peer):
        yield from _pacs(target, settings, rules)
    elif isinstance(target, DicomWeb):
        yield from _web(target)
    else:
        yield _hl7(target)


def _pacs(peer: Peer, settings: Settings, rules: Rules) -> Iterator[Finding]:
    proposed = (*_RESULTS, StorageCommitmentPushModel)
    found = examine(peer, proposed, calling_aet=settings.ae_title, timeouts=TIMEOUTS)
    us = f"{settings.ae_title}, port {settings.dicom_port}"
    if not found.echo.delivered:
        yield fault(
            "PACS", found.echo.text, f"check address and title; the PACS has to know us: {us}"
        )
        return
    yield good("PACS", f"{peer} answers C-ECHO")
    taken = [name for uid, name in _RESULTS.items() if uid in found.accepted]
    left = [name for uid, name in _RESULTS.items() if uid not in found.accepted]
    shown = f"{peer} accepts {', '.join(taken) or 'none of our results'}"
    shown += f"; not {', '.join(left)}" if left else ""
    reports = {Comprehensive3DSRStorage, ComprehensiveSRStorage} & found.accepted
    if SegmentationStorage in found.accepted and reports:
        yield good("PACS", shown)
    else:
        yield warning(
            "PACS",
            shown,
            'let it accept them, or give it artifacts = "auto" in the rules file: then '
            "secondary captures and a PDF go instead",
        )
    title = peer.ae_title
    asked = receiver(rules, str(peer)).commitment
    spared = not asked if asked is not None else {"*", title} & set(settings.no_commitment)
    if StorageCommitmentPushModel in found.accepted:
        yield good("PACS", f"{peer} offers storage commitment")
    elif spared:
        yield note("PACS", f"{peer} offers no storage commitment, and is not asked for it")
    else:
        yield warning(
            "PACS",
            f"{peer} offers no storage commitment",
            f"switch it on there for us ({us}), or add {title} to HIPSCORE_NO_COMMITMENT",
        )


def _query_peer(peer: Peer, settings: Settings) -> Finding:
    found = examine(peer, tuple(_QUERY), calling_aet=settings.ae_title, timeouts=TIMEOUTS)
    if not found.echo.delivered:
        return fault("query", found.echo.text, "check HIPSCORE_QUERY_PEER, and that it knows us")
    offered = [name for uid, name in _QUERY.items() if uid in found.accepted]
    if "C-FIND" not in offered:
        return fault("query", f"{peer} accepts no C-FIND from us", "let it answer our queries")
    shown = f"{peer} offers {', '.join(offered)}"
    if len(offered) == 1 and settings.earlier_reports:
        return warning(
            "query",
            f"{shown}: earlier reports cannot be fetched from it",
            "let it answer C-GET or C-MOVE, or set HIPSCORE_EARLIER_REPORTS=false",
        )
    return good("query", shown)


def _worklist(peer: Peer, settings: Settings) -> Finding:
    proposed = (str(UID(ModalityWorklistInformationFind)),)
    found = examine(peer, proposed, calling_aet=settings.ae_title, timeouts=TIMEOUTS)
    if found.echo.delivered and found.accepted:
        return good("worklist", f"{peer} answers, and takes worklist queries")
    if found.accepted:
        return good("worklist", f"{peer} takes worklist queries")
    text = found.echo.text if not found.echo.delivered else f"{peer} takes no worklist query"
    return fault("worklist", text, "check HIPSCORE_WORKLIST_PEER, and that it knows us")


def _web(target: DicomWeb) -> Iterator[Finding]:
    parts = urlsplit(target.url)
    host, port = str(parts.hostname), parts.port or (443 if parts.scheme == "https" else 80)
    if parts.scheme == "https":
        finding = _certificate(target, host, port)
        yield finding
        if finding.remedy and "verified" not in finding.text:
            return
    else:
        yield warning(
            "DICOMweb", f"{target} is not encrypted", "use https:// where others can listen in"
        )
    try:
        began = time.perf_counter()
        answer = httpx.options(f"{target}/studies", timeout=10.0)
        spent = time.perf_counter() - began
    except httpx.HTTPError as error:
        yield fault(
            "DICOMweb", f"{target} does not answer ({type(error).__name__})", "check the address"
        )
        return
    shown = f"{target} answers in {spent * 1000:.0f} ms (status {answer.status_code} to OPTIONS)"
    if answer.status_code >= 500:
        yield warning("DICOMweb", shown, "look at its log")
    else:
        yield good("DICOMweb", shown)


def _certificate(target: DicomWeb, host: str, port: int) -> Finding:
    context = ssl.create_default_context()
    try:
        with (
            socket.create_connection((host, port), timeout=5.0) as plain,
            context.wrap_socket(plain, server_hostname=host) as secure,
        ):
            shown = secure.getpeercert() or {}
            version = secure.version()
    except ssl.SSLCertVerificationError as error:
        return fault(
            "TLS",
            f"{target}: {error.verify_message}",
            "give this machine the certificate of its authority (ca-certificates)",
        )
    except OSError as error:
        return fault("TLS", f"{target}: {error.strerror or error}", "check address and port")
    ends = datetime.fromtimestamp(ssl.cert_time_to_seconds(str(shown["notAfter"])), UTC)
    days = (ends - datetime.now(UTC)).days
    text = f"{target}: chain verified, {version}, the certificate ends on {ends:%Y-%m-%d}"
    if days < SOON_DAYS:
        return warning("TLS", f"{text}, in {days} days", "have it renewed")
    return good("TLS", text)


def _hl7(target: Mllp) -> Finding:
    # a message would be a result to the receiver: only the connection is tried
    if listens(target.host, target.port):
        return good("HL7", f"{target} accepts connections (no message was sent)")
    return fault("HL7", f"{target} cannot be reached", "check the address and the firewall")
