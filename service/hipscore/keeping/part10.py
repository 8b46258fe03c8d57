"""What was received as a file: our own constant File Meta Information, then the data set."""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO

from pydicom.dataset import FileMetaDataset
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID

from hipscore.reporting.uids import IMPLEMENTATION_CLASS

#: never changes: it is part of the bytes by which an image that comes again is recognised
_VERSION_NAME = "HIPSCORE"
#: Media Storage SOP Instance UID (0002,0003), VR UI, in Explicit VR Little Endian
_SOP_INSTANCE = b"\x02\x00\x03\x00UI"


def head(*, sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> bytes:
    """Preamble and File Meta Information (PS3.10 7.1) of a received data set.

    The same data set in the same transfer syntax always makes the same file, whatever
    version of us or of a library received it: its SHA-256 tells a duplicate from a
    conflict.
    """
    # All images of a series have the same but for the UID, and most have it equally long.
    placeholder = "9" * len(sop_instance_uid)
    template = _head(sop_class_uid, placeholder, transfer_syntax_uid)
    place = template.index(_SOP_INSTANCE) + len(_SOP_INSTANCE) + 2  # the length of a UI is 2 bytes
    uid = sop_instance_uid.encode("ascii")
    return template[:place] + uid + template[place + len(uid) :]


@lru_cache(maxsize=256)
def _head(sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> bytes:
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = UID(sop_class_uid)
    meta.MediaStorageSOPInstanceUID = UID(sop_instance_uid)
    meta.TransferSyntaxUID = UID(transfer_syntax_uid)
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS)
    meta.ImplementationVersionName = _VERSION_NAME
    file = BytesIO()
    file.write(bytes(128) + b"DICM")
    write_file_meta_info(file, meta)  # type: ignore[arg-type] # any binary file will do
    return file.getvalue()
