"""A real service to look at: patients with one study and with several, good and bad news."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import select

from hipscore import phantom, worker
from hipscore.addresses import Peer
from hipscore.domain import Side
from hipscore.settings import Settings
from hipscore.store import deliveries, engine
from hipscore.store.tables import Delivery
from tests.integration import shell_steps as steps

#: a destination that nobody answers at
NOBODY = "NOBODY@127.0.0.1:1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A running service. ``studies`` names the Study Instance UIDs."""

    url: str
    studies: Mapping[str, str]
    settings: Settings


def study(
    settings: Settings,
    folder: Path,
    seed: int,
    *,
    dicom: Mapping[str, Any] | None = None,
    **made: Any,
) -> str:
    """A study is received and analysed; its UID."""
    truth = steps.make_phantom(seed, **made)
    images = phantom.to_datasets(truth, **(dicom or {}))
    for image in images:
        image.BodyPartExamined = "PELVIS"  # so that the rules take it
    job = steps.received(settings, images, folder)
    scored = truth.anatomy == "hip"
    with steps.bench(settings, steps.knowing((truth, images)) if scored else None) as at:
        worker.analyse(job.id, at)
    return str(images[0].StudyInstanceUID)


def furnish(settings: Settings, root: Path) -> dict[str, str]:
    """What a working day leaves in the worklist."""
    jane = {"patient_name": "Doe^Jane", "patient_id": "P-1"}
    ada = {"patient_name": "Müller^Ada=穆勒^艾达", "patient_id": "P-2"}
    bad = settings.model_copy(update={"destinations": (Peer.parse(NOBODY),)})
    fine = {"rows": 160, "slices": 20}
    found = {
        "earlier": study(
            settings, root / "1", 3, burden=phantom.Burden.MODERATE, slices=13, slice_mm=6.0,
            dicom={**jane, "accession_number": "A100", "study_date": "20240105"},
        ),
        "middle": study(
            settings, root / "2", 3, burden=phantom.Burden.SEVERE, **fine,
            dicom={**jane, "accession_number": "A101", "study_date": "20250310"},
        ),
        "brain": study(
            settings, root / "3", 5, anatomy="brain",
            dicom={"patient_name": "Nobody", "patient_id": "P-3", "study_date": "20260101"},
        ),
        "one": study(
            settings, root / "4", 6, hips=(Side.LEFT,),
            dicom={**ada, "accession_number": "A103", "study_date": "20260210"},
        ),
        "now": study(
            bad, root / "5", 3, burden=phantom.Burden.MILD, **fine,
            dicom={**jane, "accession_number": "A102", "study_date": "20260301"},
        ),
    }  # fmt: skip
    give_up(settings)
    return found


def give_up(settings: Settings) -> None:
    """Every delivery has been tried as often as is allowed."""
    connected = engine.connect(settings.database)
    now = datetime.now(UTC)
    with engine.sessions(connected).begin() as session:
        for row in session.scalars(select(Delivery)):
            until = now + timedelta(minutes=1)
            deliveries.claim(row.id, lease="lease", lease_until=until, now=now, session=session)
            deliveries.exhaust(
                row.id,
                lease="lease",
                error=f"{NOBODY} cannot be reached",
                status=None,
                now=now,
                session=session,
            )
    connected.dispose()
