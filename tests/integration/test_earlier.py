"""Earlier results of a patient: from our database, from the PACS, and by way of the listener."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from pydantic import SecretStr
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import BasicTextSRStorage
from sqlalchemy import text, update
from sqlalchemy.orm import Session, sessionmaker

from hipscore import pacs, worker
from hipscore.addresses import Peer
from hipscore.domain import ArtifactKind, StudyIdentity
from hipscore.identity import identity
from hipscore.listener.documents import Documents
from hipscore.listener.door import Door
from hipscore.phantom import Burden, Phantom, to_datasets
from hipscore.reporting.source import to_bytes
from hipscore.settings import Settings
from hipscore.store import earlier, engine, studies
from hipscore.store.tables import EarlierReport as Row
from hipscore.store.tables import Event, Job, Series
from tests import archives, servers
from tests.contract import factories
from tests.integration import shell_steps as steps
from tests.integration import store_steps
from tests.integration.delivery_steps import NAME, artifacts, refused_sockets
from tests.integration.test_inquiry import answering, match
from tests.integration.test_orders import analysed, ledger
from tests.unit.test_earlier import a_report

WHOSE = StudyIdentity(patient_id="P1", study_date="20240702", study_time="120000")
KEY = str(WHOSE.patient_key)
BEFORE = (WHOSE.study_date, WHOSE.study_time)


# --- the store -------------------------------------------------------------------------------


def keep(*reports: Any, session: Session, patient_key: str = KEY) -> None:
    for each in reports:
        earlier.keep(each, patient_key=patient_key, now=store_steps.NOW, session=session)


def found(*, session: Session, keys: Sequence[str] = (KEY,), study: str = "1.0") -> list[str]:
    scores = earlier.scores(study, keys, before=BEFORE, session=session)
    return [each.sr_instance_uid for each in scores]


def test_a_report_is_kept_once_and_read_as_it_was(maker: sessionmaker[Session]) -> None:
    report = a_report("1.1", "20240101", "0930")
    for _ in range(2):
        with maker.begin() as session:
            keep(report, session=session)
    with maker() as session:
        assert store_steps.rows(Row, session=session) == 1
        assert earlier.scores("1.0", [KEY], before=BEFORE, session=session) == (report.score,)
        assert earlier.known([KEY], session=session) == {"1.1.1"}
        assert earlier.scores("1.0", [], before=BEFORE, session=session) == ()
        assert earlier.scores("1.0", [KEY], before=("", ""), session=session) == ()


def test_a_report_belongs_to_the_patient_it_was_last_sent_for(
    maker: sessionmaker[Session],
) -> None:
    report = a_report("1.1", "20240101")
    with maker.begin() as session:
        keep(report, session=session, patient_key="another")
        keep(report, session=session)
    with maker() as session:
        assert found(session=session) == ["1.1.1"]
        assert found(session=session, keys=["another"]) == []


def test_reports_of_other_patients_and_later_days_are_left_out(
    maker: sessionmaker[Session],
) -> None:
    with maker.begin() as session:
        keep(a_report("1.1", "20240101"), session=session, patient_key="another")
        keep(a_report("1.2", "20240703"), session=session)
    with maker() as session:
        assert found(session=session) == []


def test_what_another_release_wrote_is_passed_over(maker: sessionmaker[Session]) -> None:
    with maker.begin() as session:
        keep(a_report("1.1", "20240101"), a_report("1.2", "20240102"), session=session)
        session.execute(update(Row).where(Row.study_instance_uid == "1.1").values(content={"v": 2}))
    with maker() as session:
        assert found(session=session) == ["1.2.1"]


def own(
    session: Session, *, series: str = "1.7.1", study: str = "1.7", date: str = "20240101"
) -> int:
    """A scored job of ours of an earlier study; its id."""
    job_id, _ = store_steps.a_scored_job(session=session, series=series, study=study)
    result = {
        "study_instance_uid": study,
        "series_instance_uid": series,
        "unet_score": 3.2,
        "hips": [{"side": "left", "unet_score": 3.2, "slices_used": 9}],
        "model": {"id": "hips", "version": "1.0"},
        "created_at": store_steps.NOW.isoformat(),
        "supersedes": None,
    }
    session.execute(update(Job).where(Job.id == job_id).values(result=result))
    studies.complete(
        study,
        StudyIdentity(patient_id="P1", study_date=date, study_time="120000"),
        now=store_steps.NOW,
        session=session,
    )
    return job_id


def report_of(job_id: int, *, session: Session) -> str:
    row = session.get_one(Job, job_id)
    uid = store_steps.artifact(ArtifactKind.SR, row.id).sop_instance_uid
    assert uid is not None
    return uid


def test_our_own_result_counts(maker: sessionmaker[Session]) -> None:
    with maker.begin() as session:
        job_id = own(session)
        uid = report_of(job_id, session=session)
    with maker() as session:
        (score,) = earlier.scores("1.0", [KEY], before=BEFORE, session=session)
        assert (score.sr_instance_uid, score.source, score.unet_score) == (uid, "database", 3.2)
        assert (score.study_date, score.model) == ("20240101", "hips 1.0")
        assert score.sr_class_uid
        assert score.sr_series_uid
        assert found(session=session, study="1.7") == []  # it is the study in question
        assert uid in earlier.known([KEY], session=session)


def test_a_withdrawn_result_counts_no_more_although_its_report_is_in_the_pacs(
    maker: sessionmaker[Session],
) -> None:
    with maker.begin() as session:
        job_id = own(session)
        uid = report_of(job_id, session=session)
        copy_of_it = a_report("1.7", "20240101", series="1.7.1")
        object.__setattr__(copy_of_it, "sop_instance_uid", uid)
        before = a_report("1.7", "20240101", series="1.7.1", number=99, hours=-99999)
        keep(copy_of_it, before, session=session)
        assert found(session=session) == [uid]
        session.execute(update(Job).values(withdrawn_at=store_steps.NOW))
    with maker() as session:
        assert found(session=session) == []


def test_a_superseded_result_counts_no_more(maker: sessionmaker[Session]) -> None:
    with maker.begin() as session:
        first = own(session)
        uid = report_of(first, session=session)
        late = store_steps.receive(
            store_steps.image(9, series="1.7.1", study="1.7"), session=session
        )
        second = store_steps.open_job(late.series_id, session=session)
        assert second.supersedes_id == first
        keep(a_report("1.7", "20240101", series="1.7.1", hours=-99999), session=session)
        stands = found(session=session)
    assert uid not in stands


# --- the listener ----------------------------------------------------------------------------


def saved(document: Dataset, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.dcm"
    path.write_bytes(to_bytes(document))
    return path


def sent(settings: Settings, path: Path) -> int | None:
    """The status the listener answers to a file from this machine."""
    with steps.listening(settings) as port:
        us = Peer(ae_title="HIPSCORE", host=servers.LOOPBACK, port=port)
        return pacs.send(us, [path.read_bytes()], calling_aet="PACS").status


@pytest.mark.parametrize("comprehensive3d", (True, False))
def test_the_listener_keeps_what_a_report_says_and_nothing_else(
    settings: Settings, tmp_path: Path, comprehensive3d: bool
) -> None:
    document = factories.report("scored", comprehensive3d=comprehensive3d)
    path = saved(document, tmp_path / "pacs")
    for _ in range(2):
        assert sent(settings, path) == 0x0000
    (row,) = steps.rows(settings, Row)
    assert row.sop_instance_uid == document.SOPInstanceUID
    assert row.patient_key == identity(document).patient_key
    assert str(document.PatientName) not in repr(row.content)
    assert document.PatientID not in repr(row.content)
    assert steps.count(settings, Series) == 0
    assert list((settings.data_dir / "spool").rglob("*.dcm")) == []


@steps.sqlite_only
def test_images_and_reports_may_come_over_one_association(
    settings: Settings, tmp_path: Path
) -> None:
    paths = [saved(factories.report("scored"), tmp_path), *steps.save(steps.images(), tmp_path)]
    with steps.listening(settings) as port:
        assert steps.statuses(steps.storescu(port, paths, "--required")) == ["Success"] * len(paths)
        servers.wait_until(lambda: steps.count(settings, Job) == 1, what="the series is matched")
    assert steps.count(settings, Row) == 1
    assert steps.count(settings, Series) == 1


@steps.sqlite_only
def test_a_document_of_others_is_refused(settings: Settings, tmp_path: Path) -> None:
    document = copy.deepcopy(factories.report("scored"))
    document.Manufacturer = "somebody"
    assert sent(settings, saved(document, tmp_path)) == 0xC212
    assert steps.count(settings, Row) == 0


@steps.sqlite_only
def test_an_unreadable_report_is_refused(settings: Settings, tmp_path: Path) -> None:
    document = copy.deepcopy(factories.report("scored"))
    document.StudyInstanceUID = ""
    assert sent(settings, saved(document, tmp_path)) == 0xC210
    assert steps.count(settings, Row) == 0


@steps.sqlite_only
def test_other_kinds_of_reports_are_not_offered(settings: Settings, tmp_path: Path) -> None:
    document = copy.deepcopy(factories.report("scored"))
    document.SOPClassUID = document.file_meta.MediaStorageSOPClassUID = BasicTextSRStorage
    with steps.listening(settings) as port:
        tried = steps.storescu(port, [saved(document, tmp_path)], "--required")
    assert tried.returncode != 0
    assert "No Acceptable Presentation Contexts" in tried.stdout + tried.stderr


def test_while_the_database_cannot_take_it_a_report_may_be_sent_again(
    settings: Settings, maker: sessionmaker[Session], tmp_path: Path
) -> None:
    with maker.begin() as session:
        session.execute(text("ALTER TABLE earlier_reports RENAME TO elsewhere"))
    path = saved(factories.report("scored"), tmp_path)
    assert sent(settings, path) == 0xA700
    with maker.begin() as session:
        session.execute(text("ALTER TABLE elsewhere RENAME TO earlier_reports"))
    assert sent(settings, path) == 0x0000


@pytest.mark.parametrize(
    ("title", "address", "trusted"),
    (
        ("SCANNER", "10.0.0.7", False),  # may send images
        ("ANY", "10.0.0.5", True),
        ("PACS", "10.0.0.6", True),  # another node of it
        ("QR", "10.0.0.9", True),
        ("ANY", "127.0.0.1", True),
        ("ANY", "::1", True),
        ("ANY", "", False),
    ),
)
def test_reports_are_taken_from_those_who_keep_them(
    settings: Settings, maker: sessionmaker[Session], title: str, address: str, trusted: bool
) -> None:
    known = settings.model_copy(
        update={
            "destinations": (Peer.parse("PACS@10.0.0.5:104"),),
            "query_peer": Peer.parse("QR@10.0.0.9:104"),
        }
    )
    documents = Documents(known, maker, Door(known))
    assert documents.trusts(title, address) is trusted


# --- the PACS --------------------------------------------------------------------------------

Hospital: TypeAlias = Callable[[Settings], contextlib.AbstractContextManager[Peer]]


@pytest.fixture(params=("orthanc", "dcmqrscp", "dcmqrscp without C-GET"))
def hospital(request: pytest.FixtureRequest, orthanc: servers.Orthanc, tmp_path: Path) -> Hospital:
    """A PACS that may send to the listener of some settings."""

    @contextlib.contextmanager
    def running(settings: Settings) -> Iterator[Peer]:
        if request.param == "orthanc":
            yield Peer.parse(orthanc.peer)
            return
        options = ("--disable-get",) if "without" in request.param else ()
        move_to = (settings.ae_title, settings.dicom_port)
        with archives.dcmqrscp(tmp_path / "archive", move_to=move_to, options=options) as archive:
            yield Peer.parse(archive.peer)

    return running


def bring(peer: Peer, document: Dataset, **how: Any) -> pacs.Brought:
    asked: dict[str, Any] = {
        "until_date": "20251231",
        "other_than": "1.2",
        "known": (),
        "calling_aet": "HIPSCORE",
        "seconds": 10.0,
        "timeouts": pacs.Timeouts(connection=2.0, acse=2.0, dimse=2.0),
    }
    return pacs.bring_reports(peer, str(document.PatientID), **{**asked, **how})


def test_reports_are_brought_from_the_pacs(
    settings: Settings, hospital: Hospital, request: pytest.FixtureRequest
) -> None:
    document = factories.report("scored")
    uid, study = str(document.SOPInstanceUID), str(document.StudyInstanceUID)
    with hospital(settings) as peer, steps.listening(settings):
        data = [to_bytes(document), to_bytes(factories.segmentation("scored"))]
        assert pacs.send(peer, data, calling_aet="HIPSCORE").delivered
        brought = bring(peer, document)
        assert (brought.found, brought.silent) == ((uid,), None)
        if "without" in request.node.name:
            assert (brought.objects, brought.moved) == ((), (uid,))
            assert [row.sop_instance_uid for row in steps.rows(settings, Row)] == [uid]
        else:
            assert [each.sop_instance_uid for each in brought.objects] == [uid]
        nothing = [
            bring(peer, document, known={uid}),
            bring(peer, document, other_than=study),
            bring(peer, document, until_date="20240101"),
        ]
    assert [each.found for each in nothing] == [(uid,), (), ()]
    assert not any(each.objects or each.moved for each in nothing)


@refused_sockets
def test_a_pacs_that_fails_or_is_down_brings_nothing_and_says_so() -> None:
    document = factories.report("scored")
    with answering({}, status=0xA700) as peer:
        assert bring(peer, document).silent is not None
    slow = [match(PatientID=document.PatientID, StudyInstanceUID=f"1.{n}") for n in range(9)]
    with answering({"STUDY": slow}, seconds=0.4) as peer:
        assert bring(peer, document, seconds=1.0).silent is not None
    assert bring(peer, document).silent is not None


def test_studies_of_patients_the_pacs_was_not_asked_for_are_left_alone() -> None:
    document = factories.report("scored")
    other = match(PatientID="ANOTHER", StudyInstanceUID="1.9", StudyDate="20240101")
    series = match(SeriesInstanceUID="1.9.1", Modality="SR")
    with answering({"STUDY": [other], "SERIES": [series]}) as peer:
        assert bring(peer, document) == pacs.Brought()


# --- the whole way ---------------------------------------------------------------------------


def visit(burden: Burden, date: str, **more: Any) -> tuple[Phantom, list[Dataset]]:
    """One study of the same patient."""
    truth = steps.make_phantom(1, burden=burden)
    return truth, to_datasets(truth, patient_name=NAME, study_date=date, **more)


def change_in(job: Job) -> dict[str, Any] | None:
    """What the result says of an earlier one."""
    assert job.result is not None
    found: dict[str, Any] | None = job.result["change"]
    return found


def wiped(settings: Settings, folder: Path) -> Settings:
    """The same installation, with nothing in its database and its spool."""
    url = f"sqlite:///{folder / 'fresh.db'}"
    engine.upgrade(url)
    return settings.model_copy(
        update={"database_url": SecretStr(url), "data_dir": folder / "fresh"}
    )


@steps.sqlite_only
def test_an_earlier_report_that_is_only_in_the_pacs_is_found(
    settings: Settings, hospital: Hospital, tmp_path: Path
) -> None:
    truth, images = visit(Burden.MILD, "20240102")
    first = analysed(settings, images, truth, tmp_path / "first")
    reports = artifacts(settings)
    earlier_report = dcmread(BytesIO(reports[ArtifactKind.SR]))

    fresh = wiped(settings, tmp_path)
    truth, images = visit(Burden.SEVERE, "20240702")
    with hospital(fresh) as peer:
        assert pacs.send(peer, [reports[ArtifactKind.SR]], calling_aet="HIPSCORE").delivered
        asking = fresh.model_copy(update={"query_peer": peer})
        job = steps.received(asking, images, tmp_path / "second")
        with (
            steps.listening(asking),
            steps.bench(asking, steps.knowing((truth, images))) as at,
        ):
            worker.analyse(job.id, at)
    (done,) = steps.rows(fresh, Job)
    change = change_in(done)
    assert change is not None
    assert first.result is not None
    assert change["sr_instance_uid"] == earlier_report.SOPInstanceUID
    assert change["study_instance_uid"] == earlier_report.StudyInstanceUID
    assert change["study_date"] == "20240102"
    assert change["unet_score"] == pytest.approx(first.result["unet_score"], abs=1e-6)
    assert change["difference"] == pytest.approx(
        done.result["unet_score"] - first.result["unet_score"], abs=1e-5
    )
    assert ledger(fresh, "earlier_found", "earlier_unknown") == [
        (
            "earlier_found",
            {
                "scores": 1,
                "reports": [str(earlier_report.SOPInstanceUID)],
                "in_pacs": 1,
                "brought": 1,
            },
        )
    ]
    assert NAME not in repr([row.detail for row in steps.rows(fresh, Event)])
    assert NAME not in repr([row.content for row in steps.rows(fresh, Row)])


def test_an_earlier_result_of_our_own_is_found_without_any_pacs(
    settings: Settings, tmp_path: Path
) -> None:
    both = [visit(Burden.MILD, "20240102"), visit(Burden.SEVERE, "20240702")]
    first, second = (
        analysed(settings, images, truth, tmp_path / str(number))
        for number, (truth, images) in enumerate(both)
    )
    assert change_in(first) is None
    change = change_in(second)
    assert change is not None
    assert change["study_instance_uid"] == both[0][1][0].StudyInstanceUID
    assert ledger(settings, "earlier_found")[0][1]["scores"] == 1


@steps.sqlite_only
def test_the_patient_of_another_issuer_is_another_patient(
    settings: Settings, tmp_path: Path
) -> None:
    both = [visit(Burden.MILD, "20240102"), visit(Burden.SEVERE, "20240702")]
    for number, (truth, images) in enumerate(both):
        for image in images:
            image.IssuerOfPatientID = f"HOSPITAL-{number}"
        done = analysed(settings, images, truth, tmp_path / str(number))
    assert change_in(done) is None


@steps.sqlite_only
def test_an_issuer_that_only_the_order_names_does_not_hide_what_was_before(
    settings: Settings, tmp_path: Path
) -> None:
    truth, images = visit(Burden.MILD, "20240102")
    analysed(settings, images, truth, tmp_path / "first")
    truth, images = visit(Burden.SEVERE, "20240702")
    with archives.wlmscpfs(tmp_path / "worklist") as worklist:
        worklist.plan(
            archives.planned(
                study_uid=images[0].StudyInstanceUID,
                patient_id=images[0].PatientID,
                issuer="HOSPITAL",
            )
        )
        asking = settings.model_copy(update={"worklist_peer": Peer.parse(worklist.peer)})
        done = analysed(asking, images, truth, tmp_path / "second")
    assert change_in(done) is not None


@steps.sqlite_only
def test_the_pacs_is_not_asked_for_reports_where_that_is_switched_off(
    settings: Settings, orthanc: servers.Orthanc, tmp_path: Path
) -> None:
    truth, images = visit(Burden.MILD, "20240102")
    analysed(settings, images, truth, tmp_path / "first")
    orthanc.upload(artifacts(settings)[ArtifactKind.SR])
    fresh = wiped(settings, tmp_path).model_copy(
        update={"query_peer": Peer.parse(orthanc.peer), "earlier_reports": False}
    )
    truth, images = visit(Burden.SEVERE, "20240702")
    done = analysed(fresh, images, truth, tmp_path / "second")
    assert change_in(done) is None
    assert ledger(fresh, "earlier_found", "earlier_unknown") == []
