"""What is taken: SOP classes and transfer syntaxes, the same whichever way an object comes."""

from __future__ import annotations

from functools import lru_cache

from pydicom.pixels import get_decoder  # type: ignore[attr-defined]
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
    LegacyConvertedEnhancedMRImageStorage,
    MRImageStorage,
    RLELossless,
)

SOP_CLASSES = (MRImageStorage, EnhancedMRImageStorage, LegacyConvertedEnhancedMRImageStorage)

# In order of preference where a sender proposes several in one context.
_UNCOMPRESSED = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian)
_COMPRESSED = (
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


@lru_cache(maxsize=1)
def transfer_syntaxes() -> tuple[UID, ...]:
    """Return every transfer syntax we accept: uncompressed, and compressed with a decoder here.

    Deflated Explicit VR is left out: its header cannot be read without inflating it all.
    """
    return (*_UNCOMPRESSED, *(uid for uid in _COMPRESSED if get_decoder(uid).is_available))
