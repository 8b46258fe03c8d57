"""Synthetic coronal hip STIR studies with known truth, made from a seed alone.

``synthesise`` makes a study (:mod:`.study`), ``to_datasets`` writes it as DICOM
(:mod:`.dicom`). The person is drawn in :mod:`.build`, painted in :mod:`.pelvis` and
:mod:`.joint` (or :mod:`.brain`) with the shapes of :mod:`.canvas`.
"""

from __future__ import annotations

from hipscore.phantom.dicom import to_datasets
from hipscore.phantom.study import Burden, Phantom, derive_uid, synthesise

__all__ = ["Burden", "Phantom", "derive_uid", "synthesise", "to_datasets"]
