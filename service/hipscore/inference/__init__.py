"""The networks of a model bundle on the fastest runtime that reproduces its reference.

``bundle`` reads and verifies the folder, ``hardware`` says what the machine can, ``runtimes``
run one graph, ``networks`` choose, check and, when a device is lost, change the runtime.
"""

from hipscore.inference.bundle import (
    Bundle,
    BundleError,
    Precision,
    open_bundle,
    shipped_bundle,
)
from hipscore.inference.networks import (
    BundleSegmenter,
    Choice,
    Provider,
    choices,
    load_segmenter,
)

__all__ = [
    "Bundle",
    "BundleError",
    "BundleSegmenter",
    "Choice",
    "Precision",
    "Provider",
    "choices",
    "load_segmenter",
    "open_bundle",
    "shipped_bundle",
]
