"""The other real parts of a hospital: modality worklists, and an archive by dcmtk.

dcmtk ``wlmscpfs`` and Orthanc's worklist plugin (modality worklists), dcmtk ``dcmqrscp`` (a
Storage and Query/Retrieve SCP). Worklist items are written as files.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from tests import servers
from tests.servers import LOOPBACK, MissingPart, Orthanc, Process, free_port, listens, program

_WORKLIST_FILE = UID("1.2.276.0.7230010.3.1.0.1")  # as dump2dcm names it
_PLUGIN = Path("/usr/share/orthanc/plugins/libModalityWorklists.so")


def planned(
    *,
    study_uid: str,
    patient_id: str,
    date: str = "20240102",
    accession: str = "A-1",
    procedure: str = "RP-1",
    described: str = "MR hips",
    physician: str = "",
    patient_name: str = "Doe^Jane",
    modality: str = "MR",
    character_set: str | list[str] = "ISO_IR 192",
    issuer: str = "",
    **more: Any,
) -> Dataset:
    """One item of a modality worklist (PS3.4 table K.6-1)."""
    step = Dataset()
    step.ScheduledStationAETitle = "MR1"
    step.ScheduledProcedureStepStartDate = date
    step.ScheduledProcedureStepStartTime = "120000"
    step.Modality = modality
    step.ScheduledPerformingPhysicianName = ""
    step.ScheduledProcedureStepDescription = described
    step.ScheduledProcedureStepID = "SPS-1"
    step.ScheduledStationName = ""
    step.ScheduledProcedureStepLocation = ""
    item = Dataset()
    item.SpecificCharacterSet = character_set
    item.AccessionNumber = accession
    item.ReferringPhysicianName = physician
    item.PatientName = patient_name
    item.PatientID = patient_id
    if issuer:
        item.IssuerOfPatientID = issuer
    item.PatientBirthDate = "19800229"
    item.PatientSex = "F"
    item.StudyInstanceUID = study_uid
    item.RequestedProcedureDescription = described
    item.ScheduledProcedureStepSequence = [step]
    item.RequestedProcedureID = procedure
    item.RequestedProcedurePriority = "ROUTINE"
    for keyword, value in more.items():
        setattr(item, keyword, value)
    return item


@dataclass(frozen=True, slots=True, kw_only=True)
class Worklist:
    """A running modality worklist that answers from the files in ``directory``."""

    ae_title: str
    port: int
    directory: Path
    process: Process

    @property
    def peer(self) -> str:
        """``AET@HOST:PORT``, as in HIPSCORE_WORKLIST_PEER."""
        return f"{self.ae_title}@{LOOPBACK}:{self.port}"

    def plan(self, *items: Dataset) -> None:
        """Replace what is planned by these items."""
        for path in self.directory.glob("*.wl"):
            path.unlink()
        for number, item in enumerate(items):
            meta = FileMetaDataset()
            meta.MediaStorageSOPClassUID = _WORKLIST_FILE
            meta.MediaStorageSOPInstanceUID = generate_uid()
            meta.TransferSyntaxUID = ExplicitVRLittleEndian
            item.file_meta = meta
            item.save_as(self.directory / f"{number:03d}.wl", enforce_file_format=True)


@contextlib.contextmanager
def wlmscpfs(root: Path, *, options: Sequence[str] = ("--keep-char-set",)) -> Iterator[Worklist]:
    """Run dcmtk ``wlmscpfs`` with its files below ``root``."""
    executable = program("wlmscpfs", package="dcmtk")
    directory = root / "WORKLIST"
    directory.mkdir(parents=True)
    (directory / "lockfile").touch()
    port = free_port()
    command = (executable, "--debug", *options, "--data-files-path", str(root), str(port))
    process = Process(command=command, log=root / "wlmscpfs.log", ready=lambda: listens(port))
    process.start()
    try:
        yield Worklist(ae_title="WORKLIST", port=port, directory=directory, process=process)
    finally:
        process.stop()


@contextlib.contextmanager
def orthanc_worklist(root: Path) -> Iterator[Worklist]:
    """Run Orthanc with its worklist plugin and its files below ``root``."""
    if not _PLUGIN.is_file():
        raise MissingPart(f"{_PLUGIN} is not installed: run `make setup-system`")
    directory = root / "worklists"
    directory.mkdir(parents=True)
    configuration = {
        **servers.ORTHANC_CONFIGURATION,
        "Plugins": [str(_PLUGIN)],
        "DicomAlwaysAllowFindWorklist": True,
        "DefaultEncoding": "Utf8",  # of what it answers; its own default is Latin-1
        "Worklists": {"Enable": True, "Database": str(directory)},
    }
    with servers.orthanc(root, configuration=configuration) as running:
        yield Worklist(
            ae_title=running.ae_title,
            port=running.dicom_port,
            directory=directory,
            process=running.process,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """A running dcmtk ``dcmqrscp``: Storage, C-FIND, C-MOVE and, unless disabled, C-GET."""

    ae_title: str
    port: int
    process: Process

    @property
    def peer(self) -> str:
        """``AET@HOST:PORT``, as in HIPSCORE_QUERY_PEER."""
        return f"{self.ae_title}@{LOOPBACK}:{self.port}"


@contextlib.contextmanager
def dcmqrscp(
    root: Path, *, move_to: tuple[str, int], options: Sequence[str] = ()
) -> Iterator[Archive]:
    """Run ``dcmqrscp`` with its files below ``root``.

    ``move_to``: AE title and port on this machine that C-MOVE may send to.
    """
    executable = program("dcmqrscp", package="dcmtk")
    storage = root / "ARCHIVE"
    storage.mkdir(parents=True)
    port = free_port()
    title, destination = move_to
    path = root / "dcmqrscp.cfg"
    path.write_text(
        f"""NetworkTCPPort = {port}
MaxPDUSize = 16384
MaxAssociations = 16
HostTable BEGIN
hipscore = ({title}, localhost, {destination})
HostTable END
VendorTable BEGIN
VendorTable END
AETable BEGIN
ARCHIVE {storage} RW (200, 1024mb) ANY
AETable END
"""
    )
    command = (executable, "--debug", *options, "--config", str(path))
    process = Process(command=command, log=root / "dcmqrscp.log", ready=lambda: listens(port))
    process.start()
    try:
        yield Archive(ae_title="ARCHIVE", port=port, process=process)
    finally:
        process.stop()


__all__ = ["Archive", "Orthanc", "Worklist", "dcmqrscp", "orthanc_worklist", "planned", "wlmscpfs"]
