"""The networks as the settings say."""

from __future__ import annotations

from pathlib import Path

from hipscore.inference import BundleSegmenter, load_segmenter
from hipscore.settings import Settings


def configured(
    settings: Settings, directory: Path | None = None, *, threads: int = 0
) -> BundleSegmenter:
    """Open a bundle as the settings say.

    Parameters
    ----------
    settings
        Bundle, provider, precision, threads, and the folder of built engines.
    directory
        Another bundle than that of the settings.
    threads
        Used where the settings do not say how many; 0: one per core.

    Raises
    ------
    hipscore.inference.BundleError
        If the bundle is not usable, or nothing reproduces its reference.
    """
    return load_segmenter(
        directory or settings.bundle_dir,
        settings.threads or threads,
        provider=settings.provider,
        precision=settings.precision,
        cache=settings.engine_cache,
    )
