"""Users' own annotated series, made into a data set the networks can be trained on.

The way of one case: :mod:`.table` says where image and labels lie, :mod:`.images` reads
the image as hipscore's Volume, :mod:`.dicom_labels` or :mod:`.itk` reads the labels,
:mod:`.geometry` brings them onto the image's voxels, :mod:`.naming` says what they mean,
:mod:`.sides` makes one :class:`~hipscore.domain.Masks` of every hip, :mod:`.build` writes.
"""

from __future__ import annotations


class Problem(ValueError):
    """Why a case (or the table) cannot be used: one line for the person who made it."""
