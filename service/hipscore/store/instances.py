"""Rows of received instances: from the header to the columns, and back."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Row

from hipscore.domain import ReceivedInstance
from hipscore.store.tables import Instance, Series


def columns(
    instance: ReceivedInstance,
    series_id: int,
    spool_key: str,
    association_id: str,
    now: datetime,
) -> dict[str, object]:
    """Columns of the row of a received instance."""
    return {
        "series_id": series_id,
        "sop_class_uid": instance.sop_class_uid,
        "sop_instance_uid": instance.sop_instance_uid,
        "transfer_syntax_uid": instance.transfer_syntax_uid,
        "sha256": instance.sha256,
        "spool_key": spool_key,
        "size": instance.size,
        "instance_number": instance.instance_number,
        "number_of_frames": instance.number_of_frames,
        "images_in_acquisition": instance.images_in_acquisition,
        "position_mm": _numbers(instance.position_mm),
        "orientation": _numbers(instance.orientation),
        "image_type": [value.replace("\0", "") for value in instance.image_type],
        "association_id": association_id,
        "received_at": now,
    }


#: what :func:`received` reads of a row
RECEIVED: Final = (
    Instance.sop_class_uid,
    Instance.sop_instance_uid,
    Instance.transfer_syntax_uid,
    Instance.sha256,
    Instance.size,
    Instance.instance_number,
    Instance.number_of_frames,
    Instance.images_in_acquisition,
    Instance.position_mm,
    Instance.orientation,
    Instance.image_type,
)


def received(row: Row[*tuple[Any, ...]], series: Series) -> ReceivedInstance:
    """The instance as it was received, from the columns in :data:`RECEIVED`."""
    position = row.position_mm
    return ReceivedInstance(
        study_instance_uid=series.study_instance_uid,
        series_instance_uid=series.series_instance_uid,
        sop_class_uid=row.sop_class_uid,
        sop_instance_uid=row.sop_instance_uid,
        transfer_syntax_uid=row.transfer_syntax_uid,
        sha256=row.sha256,
        size=row.size,
        instance_number=row.instance_number,
        number_of_frames=row.number_of_frames,
        images_in_acquisition=row.images_in_acquisition,
        position_mm=None if position is None else (position[0], position[1], position[2]),
        orientation=None if row.orientation is None else tuple(row.orientation),
        image_type=tuple(row.image_type),
    )


def _numbers(values: tuple[float, ...] | None) -> list[float] | None:
    """Geometry as JSON; one that is not finite is none, and JSON could not hold it."""
    if values is None or not all(map(math.isfinite, values)):
        return None
    return list(values)
