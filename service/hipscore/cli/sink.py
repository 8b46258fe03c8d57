"""The small PACS of the demo: keeps what it gets, and answers for it when asked."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydicom.dataset import Dataset
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.events import Event
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)

from hipscore.addresses import Peer

#: seconds after the answer to a request for storage commitment until its report
_REPORT_AFTER = 0.05


@contextmanager
def sink(folder: Path) -> Iterator[Peer]:
    """A storage SCP in this process that keeps every object as MODALITY-UID.dcm."""

    def keep(event: Event) -> int:
        dataset: Dataset = event.dataset
        dataset.file_meta = event.file_meta
        name = f"{dataset.Modality}-{dataset.SOPInstanceUID}"
        dataset.save_as(folder / f"{name}.part", enforce_file_format=True)
        (folder / f"{name}.part").rename(folder / f"{name}.dcm")
        return 0x0000

    def answer_for(event: Event) -> tuple[int, None]:
        """Take the request of PS3.4 J.3.2; the report follows on the same association."""
        information = _report(event.action_information, folder)
        kind = 2 if "FailedSOPSequence" in information else 1

        def tell() -> None:
            if event.assoc.is_established:
                event.assoc.send_n_event_report(
                    information,
                    kind,
                    StorageCommitmentPushModel,
                    StorageCommitmentPushModelInstance,
                )

        threading.Timer(_REPORT_AFTER, tell).start()
        return 0x0000, None

    entity = AE(ae_title="DEMOPACS")
    entity.supported_contexts = AllStoragePresentationContexts
    entity.add_supported_context(StorageCommitmentPushModel)
    server = entity.start_server(
        ("127.0.0.1", 0),
        block=False,
        evt_handlers=[(evt.EVT_C_STORE, keep), (evt.EVT_N_ACTION, answer_for)],
    )
    assert server is not None  # noqa: S101 - not blocking, so there is one
    try:
        port = server.server_address[1]
        yield Peer(ae_title="DEMOPACS", host="127.0.0.1", port=int(port))
    finally:
        server.shutdown()


def _report(asked: Dataset, folder: Path) -> Dataset:
    """Event Information (PS3.4 table J.3-2): which of these objects lie in the folder."""
    held = {path.stem.partition("-")[2] for path in folder.glob("*.dcm")}
    kept, lost = [], []
    for item in asked.ReferencedSOPSequence:
        if item.ReferencedSOPInstanceUID in held:
            kept.append(item)
        else:
            item.FailureReason = 0x0112  # no such object instance
            lost.append(item)
    report = Dataset()
    report.TransactionUID = asked.TransactionUID
    report.ReferencedSOPSequence = kept
    if lost:
        report.FailedSOPSequence = lost
    return report
