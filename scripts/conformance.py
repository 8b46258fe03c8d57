"""Write docs/conformance.md: the DICOM conformance statement, from the tables of the code.

    python scripts/conformance.py [--check]

With ``--check`` nothing is written: exits 1 if the file is not what would be written. The
words are in ``templates/conformance.md.jinja``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydicom.sr.coding import Code
from pydicom.uid import (
    UID,
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    EncapsulatedPDFStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    KeyObjectSelectionDocumentStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)
from pynetdicom import __version__ as pynetdicom_version
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    ModalityWorklistInformationFind,
    StorageCommitmentPushModel,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

from hipscore.domain import RESEARCH_USE
from hipscore.keeping.offer import SOP_CLASSES, transfer_syntaxes
from hipscore.listener import reception
from hipscore.pacs import DEFAULT_TIMEOUTS
from hipscore.procedure.states import TABLE
from hipscore.reporting import codes
from hipscore.reporting.uids import IMPLEMENTATION_CLASS
from hipscore.settings import Settings

HERE = Path(__file__).resolve().parent
TARGET = HERE.parent / "docs" / "conformance.md"

RESULTS = (
    (SegmentationStorage, "segmentation of both hips, BINARY"),
    (Comprehensive3DSRStorage, "report, TID 1500"),
    (ComprehensiveSRStorage, "the same report, for peers that take nothing newer"),
    (SecondaryCaptureImageStorage, "summary page and each scored slice, where configured"),
    (EncapsulatedPDFStorage, "report as PDF, where configured"),
    (KeyObjectSelectionDocumentStorage, "rejection note of a withdrawn result (IHE RAD IOCM)"),
)
REPORTS = (Comprehensive3DSRStorage, ComprehensiveSRStorage)
PLAIN = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
SETTINGS = (
    "ae_title",
    "dicom_host",
    "dicom_port",
    "called_ae_titles",
    "senders",
    "destinations",
    "query_peer",
    "worklist_peer",
    "no_commitment",
    "max_object_mb",
    "idle_seconds",
    "association_seconds",
)
_WORKITEM = "/dicomweb/workitems/{workitem}"


def statement() -> str:
    """Compose the whole document."""
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701 - Markdown of our own tables, no HTML
        keep_trailing_newline=True,
    )
    return environment.get_template("conformance.md.jinja").render(
        research=RESEARCH_USE,
        times={name: f"{getattr(DEFAULT_TIMEOUTS, name):g}" for name in _TIMES},
        scheme=codes.SCHEME,
        scheme_name=codes.SCHEME_NAME,
        services=_services(),
        web_services=table(
            ("DICOMweb service", "user agent", "origin server"),
            (("STOW-RS: Store Instances", "yes", "yes"), ("UPS-RS: Worklist", "-", "yes")),
        ),
        listener_associations=_associations(),
        listener_contexts=_contexts(
            [
                ((Verification,), PLAIN, "SCP"),
                (SOP_CLASSES, transfer_syntaxes(), "SCP"),
                (REPORTS, PLAIN, "SCP"),
                ((StorageCommitmentPushModel,), PLAIN, "SCU (role selection accepted)"),
            ]
        ),
        store_statuses=_statuses(),
        sender_contexts=_contexts(
            [
                (tuple(uid for uid, _ in RESULTS), PLAIN, "SCU"),
                ((StorageCommitmentPushModel,), PLAIN, "SCU"),
                ((StudyRootQueryRetrieveInformationModelFind,), PLAIN, "SCU"),
                ((StudyRootQueryRetrieveInformationModelGet,), PLAIN, "SCU"),
                (REPORTS, PLAIN, "SCP by role selection, for C-GET"),
                ((StudyRootQueryRetrieveInformationModelMove,), PLAIN, "SCU"),
                ((ModalityWorklistInformationFind,), PLAIN, "SCU"),
                ((Verification,), PLAIN, "SCU"),
            ]
        ),
        send_answers=_answers(),
        queries=_queries(),
        stow=table(
            ("transaction", "resource"),
            (
                ("Store Instances", "`POST /dicomweb/studies`"),
                ("Store Instances of a study", "`POST /dicomweb/studies/{study}`"),
            ),
        ),
        ups=_worklist(),
        ups_states=_states(),
        configuration=_configuration(),
        results=table(
            ("SOP class", "UID", "what"),
            [(name(uid), f"`{uid}`", what) for uid, what in RESULTS],
        ),
        private_codes=_codes(),
    )


_TIMES = ("connection", "acse", "dimse")


def _services() -> str:
    rows = [
        *((name(uid), "-", "yes") for uid in SOP_CLASSES),
        *((name(uid), "yes", "-") for uid, _ in RESULTS),
        *((f"{name(uid)} (earlier reports)", "-", "yes") for uid in REPORTS),
        ("Study Root Query/Retrieve: FIND, GET, MOVE", "yes", "-"),
        ("Modality Worklist: FIND", "yes", "-"),
        ("Storage Commitment Push Model", "yes", "-"),
        ("Verification", "yes", "yes"),
    ]
    return table(("network service", "user (SCU)", "provider (SCP)"), rows)


def _associations() -> str:
    together = Settings.model_fields["max_associations"].default
    rows = (
        ("PDU size proposed", f"{reception.MAX_PDU} bytes"),
        (
            "associations at the same time, per listener process",
            f"{together} (`HIPSCORE_MAX_ASSOCIATIONS`)",
        ),
        ("asynchronous operations", "not supported"),
        ("implementation class UID in files", f"`{IMPLEMENTATION_CLASS}`"),
        ("implementation of the upper layer", f"pynetdicom {pynetdicom_version}"),
    )
    return table(("policy", "value"), rows)


def _statuses() -> str:
    rows = (
        ("0x0000", "success", "kept: image and database row are on stable storage"),
        (
            f"0x{reception.OUT_OF_RESOURCES:04X}",
            "refused: out of resources",
            "no room or no database now, or larger than the limit: send again later",
        ),
        (
            f"0x{reception.CANNOT_UNDERSTAND:04X}",
            "error: cannot understand",
            "unreadable, without valid UIDs, or not what the command names",
        ),
        (
            f"0x{reception.MISPLACED:04X}",
            "error: cannot understand",
            "its series is known in another study, or it came with other content before",
        ),
    )
    return table(("status", "meaning", "when"), rows)


def _answers() -> str:
    tries = Settings.model_fields["max_attempts"].default
    rows = (
        ("0x0000, 0xBxxx", "delivered"),
        (
            "0xA7xx, 0x0110, 0x0213, no answer, no association",
            f"tried again after 10 s, 20 s … 4 h, {tries} times (`HIPSCORE_MAX_ATTEMPTS`)",
        ),
        ("any other, or no presentation context", "refused: an operator decides"),
    )
    return table(("answer", "what follows"), rows)


def _queries() -> str:
    rows = (
        (
            "Modality Worklist",
            "Study Instance UID; else Patient ID, date and modality MR",
            "accession number, requested procedure, referring physician",
        ),
        (
            "Study Root, STUDY",
            "Study Instance UID; Patient ID",
            "accession number, referring physician, study ID, issuer of patient ID",
        ),
        (
            "Study Root, SERIES",
            "Study and Series Instance UID; modality SR",
            "Number of Series Related Instances; series description",
        ),
        ("Study Root, IMAGE", "Study and Series Instance UID", "SOP Instance UID"),
    )
    return table(("model and level", "matching keys", "return keys"), rows)


def _worklist() -> str:
    everything = "/dicomweb/workitems/1.2.840.10008.5.1.4.34.5/subscribers/{aet}/suspend"
    rows = (
        ("Create", "`POST /dicomweb/workitems?{workitem}`"),
        ("Retrieve", f"`GET {_WORKITEM}`"),
        ("Update", f"`POST {_WORKITEM}?{{transaction}}`"),
        ("Change State", f"`PUT {_WORKITEM}/state`"),
        ("Request Cancellation", f"`POST {_WORKITEM}/cancelrequest`"),
        ("Search", "`GET /dicomweb/workitems?{query}`"),
        ("Subscribe", f"`POST {_WORKITEM}/subscribers/{{aet}}`"),
        ("Unsubscribe", f"`DELETE {_WORKITEM}/subscribers/{{aet}}`"),
        ("Suspend Global Subscription", f"`POST {everything}`"),
        ("Open Event Channel", "web-socket `/dicomweb/subscribers/{aet}`"),
    )
    return table(("transaction", "resource"), rows)


def _states() -> str:
    rows = [
        (wish.value, state.value, " → ".join(ruling.through) or "stays", f"0x{ruling.status:04X}")
        for wish, rulings in TABLE.items()
        for state, ruling in rulings.items()
    ]
    return table(("request", "in state", "leads to", "status"), rows)


def _configuration() -> str:
    rows = []
    for field in SETTINGS:
        known = Settings.model_fields[field]
        default = known.get_default(call_default_factory=True)
        shown = "" if default in {None, ()} else str(default)
        rows.append((f"`HIPSCORE_{field.upper()}`", shown, known.description or ""))
    return table(("setting", "default", "meaning"), rows)


def _codes() -> str:
    found = {
        value.value: value.meaning
        for value in vars(codes).values()
        if isinstance(value, Code) and value.scheme_designator == codes.SCHEME
    }
    found |= {code.value: code.meaning for code in codes.REMARKS.values()}
    rows = [(f"`{value}`", meaning) for value, meaning in sorted(found.items())]
    return table(("code", "meaning"), rows)


def _contexts(groups: Iterable[tuple[Sequence[str], Sequence[str], str]]) -> str:
    rows = [(_lines(classes), _lines(syntaxes), role) for classes, syntaxes, role in groups]
    return table(("abstract syntax", "transfer syntaxes", "our role"), rows)


def _lines(uids: Sequence[str]) -> str:
    return "<br>".join(f"{name(uid)} `{uid}`" for uid in uids)


def name(uid: str) -> str:
    """Name of a UID in the standard."""
    return UID(str(uid)).name


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay out a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Write the file, or compare it."""
    parser = argparse.ArgumentParser(description="Write docs/conformance.md.")
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    text = statement()
    if parser.parse_args().check:
        if not TARGET.exists() or TARGET.read_text("utf-8") != text:
            print("docs/conformance.md is not up to date; run: make docs", file=sys.stderr)
            raise SystemExit(1)
        return
    TARGET.write_text(text, "utf-8")
    print(f"written: {TARGET}")


if __name__ == "__main__":
    main()
