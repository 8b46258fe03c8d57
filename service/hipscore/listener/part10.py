"""What was received as a file: our own constant File Meta Information, then the data set."""

from __future__ import annotations

from io import BytesIO
from typing import cast

from pydicom.dataset import FileMetaDataset
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.events import Event

from hipscore.reporting.uids import IMPLEMENTATION_CLASS

#: never changes: it is part of the bytes by which an image that comes again is recognised
_VERSION_NAME = "HIPSCORE"


def part10(event: Event) -> bytes:
    """The received object in the DICOM File Format (PS3.10 7.1), its data set as it came.

    The same data set in the same transfer syntax always gives the same bytes, whatever
    version of us or of a library received it: their SHA-256 tells a duplicate from a
    conflict.
    """
    request = cast("C_STORE", event.request)
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = UID(str(request.AffectedSOPClassUID))
    meta.MediaStorageSOPInstanceUID = UID(str(request.AffectedSOPInstanceUID))
    meta.TransferSyntaxUID = UID(str(event.context.transfer_syntax))
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS)
    meta.ImplementationVersionName = _VERSION_NAME
    file = BytesIO()
    file.write(bytes(128) + b"DICM")
    write_file_meta_info(file, meta)  # type: ignore[arg-type] # any binary file will do
    return file.getvalue() + event.encoded_dataset(include_meta=False)
