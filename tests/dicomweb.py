"""An Orthanc that is a DICOMweb service too, by its own plugin."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests import servers

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


@contextlib.contextmanager
def dicomweb(root: Path) -> Iterator[tuple[servers.Orthanc, str]]:
    """Run Orthanc with the DICOMweb plugin; yields it and the base URL of the service.

    Raises MissingPart where the plugin is not installed.
    """
    if not PLUGIN.exists():
        msg = f"{PLUGIN} is not there; run make setup-system (Debian: orthanc-dicomweb)"
        raise servers.MissingPart(msg)
    configuration = {
        **servers.ORTHANC_CONFIGURATION,
        "Plugins": [str(PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    with servers.orthanc(root, configuration=configuration) as running:
        yield running, f"{running.url}/dicom-web"


def body(objects: Sequence[bytes], *, boundary: str = "edge") -> bytes:
    """A multipart/related body, built by hand."""
    head = b"--" + boundary.encode() + b"\r\nContent-Type: application/dicom\r\n\r\n"
    end = b"--" + boundary.encode() + b"--\r\n"
    return b"".join(head + each + b"\r\n" for each in objects) + end


def content_type(boundary: str = "edge") -> str:
    """The Content-Type of such a body."""
    return f'multipart/related; type="application/dicom"; boundary={boundary}'
