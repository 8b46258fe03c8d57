"""What is mutated: phantoms in every coding we can write, and odd files of others."""

from __future__ import annotations

import lzma
import shutil
import subprocess
import tarfile
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom.data
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset
from pydicom.uid import (
    JPEG2000,
    UID,
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    MRImageStorage,
    RLELossless,
)

from hipscore import phantom
from hipscore.phantom import Phantom
from tests import real_scans
from tests.fuzz.encoding import Coding, Element, NotTakenApart, Parts, take_apart

#: real scans, where they are present; only the long program reads them
#: larger ones would make a run slow and find nothing more
LARGEST = 400_000
_CODINGS: tuple[UID, ...] = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
    RLELossless,
    JPEGLSLossless,
    JPEG2000Lossless,
)
#: what the listener accepts; a test compares it
SYNTAXES: tuple[UID, ...] = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
    JPEGLosslessSV1,
    JPEGLossless,
    JPEGLSLossless,
    JPEG2000Lossless,
    RLELossless,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSNearLossless,
    JPEG2000,
)
#: options of dcmcjpeg for what pydicom cannot write
_DCMTK = ("+e1", "+el")


@dataclass(frozen=True, slots=True)
class Source:
    """A well-formed object: its name, and its data set without File Meta Information."""

    name: str
    data: bytes
    syntax: str
    sop_class: str
    sop_instance: str

    def parts(self) -> Parts:
        """Its elements, a new copy at each call."""
        coding = Coding.of(self.syntax)
        try:
            return take_apart(self.data, coding)
        except NotTakenApart:
            # an odd file: one piece, which only changes of bytes can touch
            return Parts(coding, [])


def small_phantom(seed: int = 1, *, slices: int = 12) -> Phantom:
    """A study with two hips that is quickly made, sent and scored."""
    return phantom.synthesise(
        seed=seed, rows=96, slices=slices, slice_mm=6.0 * 12 / slices, supersampling=1
    )


def part10(dataset: Dataset) -> bytes:
    """A data set as a file."""
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def data_set(data: bytes) -> bytes:
    """The encoded data set of a Part 10 file, behind its File Meta Information."""
    if data[128:132] != b"DICM" or data[132:140] != b"\x02\x00\x00\x00UL\x04\x00":
        msg = "no File Meta Information with a group length"
        raise NotTakenApart(msg)
    return data[144 + int.from_bytes(data[140:144], "little") :]


@cache
def phantom_series() -> dict[str, tuple[Source, ...]]:
    """The images of one small study in every coding, and as one enhanced object."""
    made = small_phantom()
    series = {}
    plain = [part10(each) for each in phantom.to_datasets(made)]
    for syntax in _CODINGS:
        name = f"phantom {syntax.keyword}"
        files = (
            [part10(each) for each in phantom.to_datasets(made, transfer_syntax_uid=syntax)]
            if syntax.is_compressed
            else [_written_as(each, syntax) for each in plain]
        )
        series[name] = tuple(_source(name, each) for each in files)
    for option in _DCMTK:
        name = f"phantom dcmcjpeg {option}"
        series[name] = tuple(_source(name, each) for each in _compressed(plain, option))
    for syntax in (ExplicitVRLittleEndian, JPEG2000Lossless):
        (enhanced,) = phantom.to_datasets(made, enhanced=True, transfer_syntax_uid=syntax)
        name = f"enhanced {syntax.keyword}"
        series[name] = (_source(name, part10(enhanced)),)
    return series


def _written_as(data: bytes, syntax: UID) -> bytes:
    """An uncompressed file in another uncompressed transfer syntax."""
    image = dcmread(BytesIO(data))
    if not syntax.is_little_endian:
        image.PixelData = np.frombuffer(image.PixelData, "<u2").astype(">u2").tobytes()
    image.file_meta.TransferSyntaxUID = syntax
    buffer = BytesIO()
    dcmwrite(
        buffer,
        image,
        implicit_vr=syntax.is_implicit_VR,
        little_endian=syntax.is_little_endian,
        force_encoding=True,
    )
    return buffer.getvalue()


def _compressed(files: list[bytes], option: str) -> Iterator[bytes]:
    """JPEG lossless as dcmtk writes it."""
    executable = shutil.which("dcmcjpeg")
    if executable is None:
        msg = "dcmcjpeg is not installed: run `make setup-system` (Debian package dcmtk)"
        raise RuntimeError(msg)
    with tempfile.TemporaryDirectory() as folder:
        plain, packed = Path(folder) / "plain.dcm", Path(folder) / "packed.dcm"
        for data in files:
            plain.write_bytes(data)
            subprocess.run([executable, option, "+un", str(plain), str(packed)], check=True)
            yield packed.read_bytes()


@cache
def single_sources(*, real: bool = False) -> tuple[Source, ...]:
    """Every source, odd files included, in an order that never changes."""
    found = [each for images in phantom_series().values() for each in images[::4]]
    found += _odd_files(Path(pydicom.data.__file__).parent / "test_files")
    if real:
        found += _odd_files(real_scans.VENDORS)
        found += _scans(real_scans.PELVES)
    return tuple(found)


def _odd_files(folder: Path) -> Iterator[Source]:
    """Files of others that are images, passed off as MR images where they are none."""
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.stat().st_size > LARGEST:
            continue
        source = _odd(path.name, path.read_bytes())
        if source is not None:
            yield source


def _odd(name: str, data: bytes) -> Source | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the same files, whatever warnings are made of
            return _as_mr(_source(name, data))
    except Exception:  # noqa: BLE001 - some of these files are no DICOM, and not meant to be
        return None


def _scans(folder: Path) -> Iterator[Source]:
    for path in sorted(folder.glob("*.tar.xz"))[:3]:
        with lzma.open(path) as unpacked, tarfile.open(fileobj=unpacked) as archive:
            for member in sorted(archive.getmembers(), key=lambda each: each.name)[:40:10]:
                file = archive.extractfile(member)
                source = None if file is None else _odd(member.name, file.read())
                if source is not None:
                    yield source


def _source(name: str, data: bytes) -> Source:
    meta = dcmread(BytesIO(data), stop_before_pixels=True, specific_tags=["SOPClassUID"]).file_meta
    return Source(
        name=name,
        data=data_set(data),
        syntax=str(meta.TransferSyntaxUID),
        sop_class=str(meta.MediaStorageSOPClassUID),
        sop_instance=str(meta.MediaStorageSOPInstanceUID),
    )


def _as_mr(source: Source) -> Source | None:
    """The same object with the SOP class and the UIDs that let it into a series of ours."""
    if source.syntax not in SYNTAXES or not source.sop_class or not source.sop_instance:
        return None
    if source.sop_class in {MRImageStorage, EnhancedMRImageStorage}:
        return source
    parts = source.parts()
    if not parts.elements:
        return replace(source, sop_class=str(MRImageStorage))
    parts.put(0x00080016, b"UI", MRImageStorage.encode() + b"\0")
    parts.put(0x00080060, b"CS", b"MR")
    for tag in (0x0020000D, 0x0020000E):
        if parts.find(tag) is None:
            parts.put(tag, b"UI", b"1.2.3.4\0")
    return Source(source.name, parts.encoded(), source.syntax, MRImageStorage, source.sop_instance)


def pixel_elements(parts: Parts) -> list[Element]:
    """The elements that describe the pixels, and the pixels."""
    return [each for each in parts.elements if each.tag >> 16 in {0x0028, 0x7FE0}]
