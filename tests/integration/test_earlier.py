"""Earlier results of a patient: from our database, from the PACS, and by way of the listener."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from pydantic import SecretStr
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import BasicTextSRStorage
from sqlalchemy import select, text, update
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
from hipscore.store import earlier, engine, ledger, studies, trend
from hipscore.store.tables import EarlierReport as Row
from hipscore.store.tables import Event, Job, Series, Study
from tests import archives, servers
from tests.contract import factories
from tests.integration import shell_steps as steps
from tests.integration import store_steps
from tests.integration.delivery_steps import NAME, artifacts, refused_sockets
from tests.integration.test_inquiry import answering, match
from tests.integration.test_orders import analysed
from tests.integration.test_orders import ledger as lines
from tests.unit.test_earlier import a_report

WHOSE = StudyIdentity(patient_id="P1", study_date="20240702", study_time="120000")
KEY = str(WHOSE.patient_key)
ANOTHER = StudyIdentity(patient_id="another")


# --- the store -------------------------------------------------------------------------------


def keep(*reports: Any, session: Session, whose: StudyIdentity = WHOSE) -> None:
    for each in reports:
        earlier.keep(each, whose=whose, now=store_steps.NOW, session=session)


def found(
    *,
    session: Session,
    keys: Sequence[str] = (KEY,),
    study: str = "1.0",
    whose: StudyIdentity = WHOSE,
) -> list[str]:
    scores = earlier.find(study, whose, keys, session=session).scores
    return [each.sr_instance_uid for each in scores]


def contradicted(whose: StudyIdentity, *, session: Session) -> int:
    return earlier.find("1.0", whose, [KEY], session=session).contradicted


def test_a_report_is_kept_once_and_read_as_it_was(maker: sessionmaker[Session]) -> None:
    report = a_report("1.1", "20240101", "0930")
    for _ in range(2):
        with maker.begin() as session:
            keep(report, session=session)
    with maker() as session:
        assert store_steps.rows(Row, session=session) == 1
        assert earlier.find("1.0", WHOSE, [KEY], session=session).scores == (report.score,)
        assert earlier.known([KEY], session=session) == {"1.1.1"}
        assert earlier.find("1.0", WHOSE, [], session=session) == earlier.Found()
        dayless = replace(WHOSE, study_date="")
        assert earlier.find("1.0", dayless, [KEY], session=session) == earlier.Found()


@pytest.mark.parametrize(
    ("score", "whose"),
    (
        (3.0, ANOTHER),
        (9.0, WHOSE),
        (None, WHOSE),
        (3.0, replace(WHOSE, birth_date="19900101")),
    ),
)
def test_a_later_copy_that_says_something_else_changes_nothing(
    maker: sessionmaker[Session],
    caplog: pytest.LogCaptureFixture,
    score: float | None,
    whose: StudyIdentity,
) -> None:
    first = a_report("1.1", "20240101")
    with maker.begin() as session:
        keep(first, session=session, whose=replace(WHOSE, birth_date="19800229"))
        keep(first, session=session, whose=replace(WHOSE, birth_date="19800229"))
    assert caplog.records == []
    with maker.begin() as session:
        keep(a_report("1.1", "20240101", score=score), session=session, whose=whose)
    assert [each.getMessage() for each in caplog.records] == [
        "a copy of report 1.1.1 differs; the first is kept"
    ]
    with maker() as session:
        assert earlier.find("1.0", WHOSE, [KEY], session=session).scores == (first.score,)
        assert found(session=session, keys=[str(ANOTHER.patient_key)], whose=ANOTHER) == []
        (row,) = session.scalars(select(Row))
        assert row.content["patient"]["birth_date"] == "19800229"


def test_what_an_earlier_release_did_not_keep_of_the_patient_is_added(
    maker: sessionmaker[Session],
) -> None:
    report = a_report("1.1", "20240101")
    older = replace(WHOSE, birth_date="19800229")
    with maker.begin() as session:
        keep(report, session=session)
        (row,) = session.scalars(select(Row))
        row.content = {name: each for name, each in row.content.items() if name != "patient"}
    with maker.begin() as session:
        assert found(session=session) == ["1.1.1"]
        keep(report, session=session, whose=older)
    with maker() as session:
        assert contradicted(replace(WHOSE, birth_date="19900101"), session=session) == 1


#: the patient in question, somebody with the same Patient ID, and whether it may be the same
PEOPLE: tuple[tuple[dict[str, str], dict[str, str], bool], ...] = (
    ({"birth_date": "19800229"}, {"birth_date": "19900101"}, False),
    ({"birth_date": "19800229"}, {}, True),
    ({"sex": "F"}, {"sex": "M"}, False),
    ({"sex": "F"}, {}, True),
    ({"patient_name": "Doe^Jane"}, {"patient_name": "Roe^Jane"}, False),
    ({"patient_name": "Doe^Jane"}, {"patient_name": "DOE^J."}, True),
    ({"patient_name": "Doe^Jane"}, {"patient_name": "^Jane"}, True),
    ({"patient_name": "O'Brien^Jane"}, {"patient_name": "OBRIEN^JANE"}, True),
    ({"patient_name": "Müller^Jane"}, {"patient_name": "Mu\u0308ller"}, True),
    ({"patient_name": "Miller-Smith^Jane"}, {"patient_name": "Smith^Jane"}, True),
    ({"patient_name": "van Dyk^Jane"}, {"patient_name": "van Berg^Jane"}, False),
    ({"patient_name": "Yamada^T=山田^太郎"}, {"patient_name": "YAMADA^TAROU"}, True),
    (
        {"patient_name": "Doe^Jane", "birth_date": "19800229"},
        {"patient_name": "Roe^Jane", "birth_date": "19800229"},
        False,
    ),
)


@pytest.mark.parametrize("ours", (True, False))
@pytest.mark.parametrize(("one", "other", "same"), PEOPLE)
def test_what_contradicts_the_patient_is_somebody_elses(
    maker: sessionmaker[Session],
    one: dict[str, str],
    other: dict[str, str],
    same: bool,
    ours: bool,
) -> None:
    mine, theirs = replace(WHOSE, **one), replace(WHOSE, **other)
    with maker.begin() as session:
        if ours:
            own(session, whose=theirs)
        else:
            keep(a_report("1.1", "20240101"), session=session, whose=theirs)
    with maker() as session:
        assert len(found(session=session, whose=mine)) == same
        assert contradicted(mine, session=session) == (not same)


@pytest.mark.parametrize(("one", "other", "same"), PEOPLE)
def test_the_trend_is_one_patients(
    maker: sessionmaker[Session], one: dict[str, str], other: dict[str, str], same: bool
) -> None:
    mine, theirs = replace(WHOSE, **one), replace(WHOSE, **other)
    with maker.begin() as session:
        own(session, study="1.7", series="1.7.1", whose=mine)
        own(session, study="1.8", series="1.8.1", whose=theirs)
        session.execute(update(Study).values(score=3.2))
        keep(a_report("1.1", "20230101"), session=session, whose=theirs)
    with maker() as session:
        results = trend.of_patient(KEY, whose=mine, session=session)
        assert {each.study_instance_uid for each in results} == (
            {"1.1", "1.7", "1.8"} if same else {"1.7"}
        )
        nobodys = trend.of_patient(KEY, session=session)
        assert len(nobodys) == (3 if same else 0)


def test_reports_of_other_patients_and_later_days_are_left_out(
    maker: sessionmaker[Session],
) -> None:
    with maker.begin() as session:
        keep(a_report("1.1", "20240101"), session=session, whose=ANOTHER)
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
    session: Session,
    *,
    series: str = "1.7.1",
    study: str = "1.7",
    date: str = "20240101",
    whose: StudyIdentity = WHOSE,
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
        replace(whose, study_date=date),
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
        (score,) = earlier.find("1.0", WHOSE, [KEY], session=session).scores
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
        copy_of_it = replace(copy_of_it, sop_instance_uid=uid)
        before = a_report("1.7", "20240101", series="1.7.1", number=99, hours=-99999)
        keep(copy_of_it, before, session=session)
        assert found(session=session) == [uid]
        session.execute(update(Job).values(withdrawn_at=store_steps.NOW))
    with maker() as session:
        assert found(session=session) == []


WITH_ISSUER = replace(WHOSE, issuer_of_patient_id="HOSPITAL")


def a_copy_under_another_key(session: Session) -> tuple[int, str]:
    """A result of ours whose patient has an issuer here and none in the PACS."""
    job_id = own(session, whose=WITH_ISSUER)
    session.execute(update(Study).values(score=3.2))
    uid = report_of(job_id, session=session)
    copy_of_it = a_report("1.7", "20240101", series="1.7.1", score=9.9)
    keep(replace(copy_of_it, sop_instance_uid=uid), session=session)
    return job_id, uid


def test_our_own_row_decides_under_whatever_key_its_copy_lies_in_the_pacs(
    maker: sessionmaker[Session],
) -> None:
    with maker.begin() as session:
        _, uid = a_copy_under_another_key(session)
    with maker() as session:
        (score,) = earlier.find("1.0", WHOSE, [KEY], session=session).scores
        assert (score.sr_instance_uid, score.unet_score) == (uid, 3.2)
        (point,) = trend.of_patient(KEY, whose=WHOSE, session=session)
        assert (point.ours, point.unet_score) == (True, 3.2)
        elsewhere = replace(WHOSE, issuer_of_patient_id="CLINIC")
        assert found(session=session, whose=elsewhere) == []


def test_a_withdrawn_score_does_not_come_back_through_a_copy_under_another_key(
    maker: sessionmaker[Session],
) -> None:
    with maker.begin() as session:
        a_copy_under_another_key(session)
        session.execute(update(Job).values(withdrawn_at=store_steps.NOW))
        session.execute(update(Study).values(score=None))
    with maker() as session:
        assert found(session=session) == []
        assert trend.of_patient(KEY, whose=WHOSE, session=session) == []


def test_a_superseded_score_does_not_come_back_through_a_copy_under_another_key(
    maker: sessionmaker[Session],
) -> None:
    with maker.begin() as session:
        job_id, _ = a_copy_under_another_key(session)
        late = store_steps.receive(
            store_steps.image(9, series="1.7.1", study="1.7"), session=session
        )
        assert store_steps.open_job(late.series_id, session=session).supersedes_id == job_id
        assert found(session=session) == []


def test_an_analysis_of_somebody_elses_images_is_no_result_of_the_patient(
    maker: sessionmaker[Session],
) -> None:
    with maker.begin() as session:
        job_id = own(session)
        session.execute(update(Study).values(score=3.2))
        subject = ledger.Subject(series_id=session.get_one(Job, job_id).series_id, job_id=job_id)
        assert len(found(session=session)) == 1
        ledger.append(subject, "identity_conflict", now=store_steps.NOW, session=session)
    with maker() as session:
        assert found(session=session) == []
        assert trend.of_patient(KEY, whose=WHOSE, session=session) == []


# --- whose a study is ------------------------------------------------------------------------

NAMED = StudyIdentity(patient_name="Doe^Jane", birth_date="19800229")


@pytest.mark.parametrize(
    ("known", "other", "taken"),
    (
        (WHOSE, StudyIdentity(patient_id="P2", sex="F"), False),
        (WITH_ISSUER, StudyIdentity(issuer_of_patient_id="CLINIC", sex="F"), False),
        (replace(NAMED, patient_id="P1"), replace(NAMED, birth_date="19900101", sex="F"), False),
        (NAMED, StudyIdentity(patient_id="P2", birth_date="19900101", sex="F"), False),
        (NAMED, StudyIdentity(patient_id="P2", patient_name="Roe^Jane", sex="F"), False),
        (replace(NAMED, patient_id="P1"), StudyIdentity(patient_name="Roe^R", sex="F"), False),
        (replace(NAMED, patient_id="ANON"), replace(NAMED, patient_id="P1", sex="F"), False),
        (NAMED, replace(NAMED, patient_id="P2", sex="F"), True),
        (WHOSE, StudyIdentity(sex="F"), True),
        (
            replace(NAMED, patient_id="P1"),
            StudyIdentity(patient_id="P1", patient_name="Roe^Jane", sex="F"),
            True,
        ),
    ),
)
def test_a_study_takes_nothing_from_another_patient(
    maker: sessionmaker[Session], known: StudyIdentity, other: StudyIdentity, taken: bool
) -> None:
    with maker.begin() as session:
        store_steps.receive(store_steps.image(1), session=session)
        store_steps.open_job(session.scalars(select(Series.id)).one(), session=session)
        uid = session.scalars(select(Study.study_instance_uid)).one()
        now = store_steps.NOW
        assert studies.complete(uid, known, now=now, session=session)
        assert studies.complete(uid, other, now=now, session=session) is taken
    with maker() as session:
        row = studies.by_uid(uid, session=session)
        assert row is not None
        assert (studies.of(row) == known) is not taken
        assert row.sex == ("F" if taken else "")
        assert row.patient_key == studies.of(row).patient_key


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
        ("PACS", "10.0.0.5", True),
        ("ANY", "10.0.0.5", False),
        ("PACS", "10.0.0.6", False),  # anybody may call himself so
        ("PACS", "10.0.0.9", False),
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
    assert lines(fresh, "earlier_found", "earlier_unknown") == [
        (
            "earlier_found",
            {
                "scores": 1,
                "contradicted": 0,
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
    assert lines(settings, "earlier_found")[0][1]["scores"] == 1


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
    assert lines(fresh, "earlier_found", "earlier_unknown") == []


@steps.sqlite_only
@pytest.mark.parametrize("keyword", ("PatientBirthDate", "PatientSex", "PatientName"))
def test_the_same_id_of_another_hospital_brings_no_earlier_score(
    settings: Settings, orthanc: servers.Orthanc, tmp_path: Path, keyword: str
) -> None:
    two = {
        "PatientBirthDate": ("19800229", "19900101"),
        "PatientSex": ("F", "M"),
        "PatientName": ("Doe^Jane", "Roe^Jane"),
    }[keyword]
    both = [visit(Burden.MILD, "20240102"), visit(Burden.SEVERE, "20240702")]
    for (_, images), value in zip(both, two, strict=True):
        for image in images:
            setattr(image, keyword, value)
    truth, images = both[0]
    analysed(settings, images, truth, tmp_path / "first")
    orthanc.upload(artifacts(settings)[ArtifactKind.SR])
    fresh = wiped(settings, tmp_path)
    truth, images = both[1]
    for number, where in enumerate((settings, fresh)):  # from the database, from the PACS
        asking = where.model_copy(update={"query_peer": Peer.parse(orthanc.peer)})
        done = analysed(asking, images, truth, tmp_path / f"second-{number}")
        assert change_in(done) is None
        ((_, detail),) = lines(where, "earlier_found")[-1:]
        assert (detail["scores"], detail["contradicted"]) == (0, 1)
        assert str(two) not in repr(detail)


@steps.sqlite_only
def test_a_series_of_somebody_else_in_the_study_has_no_earlier_results(
    settings: Settings, tmp_path: Path
) -> None:
    truth, images = visit(Burden.MILD, "20240102")
    analysed(settings, images, truth, tmp_path / "first")
    theirs = steps.make_phantom(2, burden=Burden.MILD)
    both = [visit(Burden.SEVERE, "20240702"), (theirs, to_datasets(theirs, patient_name=NAME))]
    for image in both[1][1]:
        image.StudyInstanceUID = both[0][1][0].StudyInstanceUID
        image.StudyDate = "20240702"
    done = [
        analysed(settings, images, truth, tmp_path / f"second-{number}")
        for number, (truth, images) in enumerate(both)
    ]
    assert [change_in(each) is None for each in done] == [False, True]
    assert lines(settings, "identity_conflict") == [("identity_conflict", {})]
    conflict = next(
        each for each in steps.rows(settings, Event) if each.what == "identity_conflict"
    )
    assert conflict.job_id == done[1].id
    assert steps.rows(settings, Study)[-1].patient_id == both[0][1][0].PatientID
