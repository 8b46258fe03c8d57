"""What was received as a file: our own constant File Meta Information, then the data set.

The way must not show in the bytes: the same data set is the same file whether it came as a
data set (C-STORE) or as a file with somebody else's File Meta Information (STOW-RS).
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from io import BytesIO
from typing import NamedTuple

from pydicom.dataset import FileMetaDataset
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_file_meta_info
from pydicom.tag import BaseTag
from pydicom.uid import UID

from hipscore.header import Unreadable, is_uid
from hipscore.reporting.uids import IMPLEMENTATION_CLASS

#: never changes: it is part of the bytes by which an image that comes again is recognised
_VERSION_NAME = "HIPSCORE"
#: Media Storage SOP Instance UID (0002,0003), VR UI, in Explicit VR Little Endian
_SOP_INSTANCE = b"\x02\x00\x03\x00UI"
_PREAMBLE = 132
#: File Meta Information beyond this is none, bytes
LONGEST_META = 64 * 1024


class FileMeta(NamedTuple):
    """What the File Meta Information of a file says of it, and where its data set begins."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    length: int


def file_meta(data: bytes | bytearray) -> FileMeta:
    """Read preamble and File Meta Information (PS3.10 7.1) at the beginning of a file.

    Raises
    ------
    hipscore.header.Unreadable
        If there is none, or it does not say what follows.
    """
    beginning = BytesIO(data[:LONGEST_META])
    if beginning.read(_PREAMBLE)[128:] != b"DICM":
        msg = "no DICOM file: the prefix DICM is missing"
        raise Unreadable(msg)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's; it quotes values
            meta = read_dataset(
                beginning,
                is_implicit_VR=False,
                is_little_endian=True,
                stop_when=_behind_meta,
            )
            found = [
                str(meta.get(keyword, ""))
                for keyword in (
                    "MediaStorageSOPClassUID",
                    "MediaStorageSOPInstanceUID",
                    "TransferSyntaxUID",
                )
            ]
    except Exception as error:
        msg = f"the File Meta Information cannot be parsed: {type(error).__name__}"
        raise Unreadable(msg) from error
    if not all(map(is_uid, found)):
        msg = "the File Meta Information lacks SOP class, SOP instance or transfer syntax"
        raise Unreadable(msg)
    return FileMeta(found[0], found[1], found[2], beginning.tell())


def tidied(data: bytearray, meta: FileMeta) -> bytearray:
    """Put our own File Meta Information in the place of the sender's; changes ``data``."""
    data[: meta.length] = head(
        sop_class_uid=meta.sop_class_uid,
        sop_instance_uid=meta.sop_instance_uid,
        transfer_syntax_uid=meta.transfer_syntax_uid,
    )
    return data


def _behind_meta(tag: BaseTag, vr: str | None, length: int) -> bool:
    del vr, length
    return tag.group != 0x0002


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
