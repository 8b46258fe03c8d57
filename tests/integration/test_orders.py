"""Asking worklist and PACS for the order of a study, and what an analysis makes of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from hipscore import pacs, worker
from hipscore.addresses import Peer
from hipscore.domain import ArtifactKind, Outcome, StudyIdentity
from hipscore.lifecycle import JobState
from hipscore.settings import Settings
from hipscore.store.tables import Event, Job, Series, Study
from hipscore.worker import orders
from tests import archives, servers
from tests.archives import Worklist, planned
from tests.integration import shell_steps as steps
from tests.integration.delivery_steps import artifacts, refused_sockets, study
from tests.integration.test_inquiry import answering, match

QUICK = pacs.Timeouts(connection=2.0, acse=2.0, dimse=2.0)
YAMADA = "Yamada^Tarou=山田^太郎=やまだ^たろう"
IVANOV = "Иванов^Иван"


@pytest.fixture(params=("dcmtk", "orthanc"), scope="module")
def worklist(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Worklist]:
    """A modality worklist of each kind."""
    root = tmp_path_factory.mktemp(request.param)
    if request.param == "dcmtk":
        lenient = ("--keep-char-set", "--disable-file-reject")  # items without a study, too
        with archives.wlmscpfs(root, options=lenient) as running:
            yield running
    else:
        with archives.orthanc_worklist(root) as running:
            yield running


def ask(worklist: Worklist, uid: str, **known: str) -> StudyIdentity | Outcome | None:
    return pacs.order_from_worklist(
        Peer.parse(worklist.peer),
        uid,
        StudyIdentity(**known),
        calling_aet="HIPSCORE",
        timeouts=QUICK,
    )


def physician(found: StudyIdentity | Outcome | None) -> str:
    assert isinstance(found, StudyIdentity)
    return found.referring_physician


# --- the worklist ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "character_set"),
    (
        ("Müller^Jörg", "ISO_IR 100"),
        (IVANOV, "ISO_IR 144"),
        (YAMADA, ["", "ISO 2022 IR 87"]),
        (YAMADA, "ISO_IR 192"),
    ),
)
def test_an_order_is_found_by_study_and_names_survive(
    worklist: Worklist, name: str, character_set: str | list[str]
) -> None:
    worklist.plan(
        planned(study_uid="1.2.3", patient_id="P1", physician=name, character_set=character_set),
        planned(study_uid="1.2.4", patient_id="P1", accession="A-2"),
    )
    found = ask(worklist, "1.2.3", patient_id="P1")
    assert isinstance(found, StudyIdentity)
    assert found.referring_physician == name
    assert found.accession_number == "A-1"
    assert found.requested_procedure_id == "RP-1"
    assert found.requested_procedure_description == "MR hips"
    assert found.order_source == "worklist"


def test_a_study_that_names_nobody_gets_its_patient_too(worklist: Worklist) -> None:
    worklist.plan(planned(study_uid="1.2.3", patient_id="P1", patient_name="Roe^Jane"))
    found = ask(worklist, "1.2.3")
    assert isinstance(found, StudyIdentity)
    assert (found.patient_id, found.patient_name, found.sex) == ("P1", "Roe^Jane", "F")


def test_an_order_of_another_patient_is_not_taken(worklist: Worklist) -> None:
    worklist.plan(planned(study_uid="1.2.3", patient_id="P1"))
    assert ask(worklist, "1.2.3", patient_id="P2", study_date="20240102") is None


def test_without_the_study_the_only_mr_of_patient_and_day_is_taken(worklist: Worklist) -> None:
    worklist.plan(
        planned(study_uid="", patient_id="P3", accession="A-3", physician="Doe^John"),
        planned(study_uid="1.2.6", patient_id="P3", accession="A-4", modality="CT"),
        planned(study_uid="1.2.7", patient_id="P3", accession="A-5", date="20240103"),
        planned(study_uid="1.2.8", patient_id="P4", accession="A-6"),
    )
    found = ask(worklist, "1.2.99", patient_id="P3", study_date="20240102")
    assert isinstance(found, StudyIdentity)
    assert found.accession_number == "A-3"
    assert ask(worklist, "1.2.99", patient_id="P3", study_date="20240104") is None
    assert ask(worklist, "1.2.99", patient_id="P3") is None
    assert ask(worklist, "1.2.99", study_date="20240102") is None


def test_the_knee_of_the_same_day_is_not_taken(worklist: Worklist) -> None:
    knee = planned(study_uid="1.2.5", patient_id="P3", accession="A-3", described="MR knee")
    worklist.plan(knee)
    assert ask(worklist, "1.2.99", patient_id="P3", study_date="20240102") is None


def test_an_order_of_the_day_with_another_accession_number_is_not_taken(
    worklist: Worklist,
) -> None:
    worklist.plan(planned(study_uid="", patient_id="P3", accession="A-3"))
    known = {"patient_id": "P3", "study_date": "20240102"}
    assert ask(worklist, "1.2.99", **known, accession_number="A-4") is None
    assert isinstance(ask(worklist, "1.2.99", **known, accession_number="A-3"), StudyIdentity)


def test_whoever_has_no_patient_id_is_not_asked_for_by_day(worklist: Worklist) -> None:
    worklist.plan(planned(study_uid="", patient_id="ANON"))
    assert ask(worklist, "1.2.99", patient_id="ANON", study_date="20240102") is None


def test_of_several_orders_none_is_taken(worklist: Worklist) -> None:
    worklist.plan(
        planned(study_uid="", patient_id="P4", accession="A-4"),
        planned(study_uid="", patient_id="P4", accession="A-5"),
    )
    assert ask(worklist, "1.2.99", patient_id="P4", study_date="20240102") is None


@pytest.mark.parametrize("patient_id", ("P*", "P?", "*"))
def test_a_patient_id_is_never_a_pattern(worklist: Worklist, patient_id: str) -> None:
    worklist.plan(planned(study_uid="1.2.7", patient_id="P4"))
    assert ask(worklist, "1.2.99", patient_id=patient_id, study_date="20240102") is None


# --- the PACS --------------------------------------------------------------------------------


def from_pacs(peer: Peer, uid: str = "1.2.3", **known: str) -> StudyIdentity | Outcome | None:
    return pacs.order_from_pacs(
        peer, uid, StudyIdentity(**known), calling_aet="HIPSCORE", timeouts=QUICK
    )


def test_the_pacs_knows_the_order_of_a_study(orthanc: servers.Orthanc, tmp_path: Path) -> None:
    images = steps.images(accession_number="A-7")
    for image in images:
        image.ReferringPhysicianName = YAMADA
    for path in steps.save(images[:2], tmp_path / "pacs"):
        orthanc.upload(path.read_bytes())
    peer = Peer.parse(orthanc.peer)
    uid, whose = str(images[0].StudyInstanceUID), str(images[0].PatientID)
    found = from_pacs(peer, uid, patient_id=whose)
    assert isinstance(found, StudyIdentity)
    assert (found.accession_number, found.order_source) == ("A-7", "pacs")
    assert from_pacs(peer, uid, patient_id="OTHER") is None
    assert from_pacs(peer, "1.2.3") is None


def test_a_name_in_another_alphabet_survives_the_pacs(tmp_path: Path) -> None:
    images = steps.images(character_set="ISO_IR 144")
    for image in images:
        image.ReferringPhysicianName = IVANOV
    (path,) = steps.save(images[:1], tmp_path / "images")
    with archives.dcmqrscp(tmp_path / "archive", move_to=("HIPSCORE", 1)) as archive:
        peer = Peer.parse(archive.peer)
        assert pacs.send(peer, [path.read_bytes()], calling_aet="SCANNER").delivered
        assert physician(from_pacs(peer, str(images[0].StudyInstanceUID))) == IVANOV


def test_what_the_pacs_answers_of_others_is_left_out() -> None:
    theirs = match(StudyInstanceUID="1.2.4", AccessionNumber="A-1")
    nothing = match(StudyInstanceUID="1.2.3", ReferringPhysicianName="^")
    for answer in (theirs, nothing):
        with answering({"STUDY": [answer]}) as peer:
            assert from_pacs(peer) is None


@refused_sockets
def test_a_peer_that_fails_is_slow_or_is_down_is_an_outcome() -> None:
    one = match(StudyInstanceUID="1.2.3", AccessionNumber="A-1")
    with answering({}, status=0xA700) as peer:
        assert isinstance(from_pacs(peer), Outcome)
    with answering({"STUDY": [one] * 9}, seconds=0.5) as peer:
        assert isinstance(from_pacs(peer), Outcome)
    assert isinstance(from_pacs(peer), Outcome)
    with answering({"STUDY": [one] * 201}) as peer:  # does not match by what is asked
        assert isinstance(from_pacs(peer), Outcome)


# --- the analysis ----------------------------------------------------------------------------


def analysed(settings: Settings, images: list[Dataset], truth: Any, folder: Path) -> Job:
    """Send a study to the listener, and analyse it."""
    job = steps.received(settings, images, folder)
    with steps.bench(settings, steps.knowing((truth, images))) as at:
        worker.analyse(job.id, at)
    done: Job = next(row for row in steps.rows(settings, Job) if row.id == job.id)
    assert done.state is JobState.ANALYSED, done.error
    return done


def timing(job: Job, stage: str) -> float:
    """Seconds that a stage of the analysis took."""
    assert job.timings is not None
    return float(job.timings[stage])


def ledger(settings: Settings, *whats: str) -> list[tuple[str, dict[str, Any]]]:
    """Lines of the ledger of these kinds."""
    return [(row.what, row.detail) for row in steps.rows(settings, Event) if row.what in whats]


ORDER = ("order_found", "order_not_found", "order_unknown")


def test_an_analysis_finds_the_order_its_images_do_not_name(
    settings: Settings, tmp_path: Path
) -> None:
    truth, images = study()
    with archives.wlmscpfs(tmp_path / "worklist") as worklist:
        worklist.plan(
            planned(
                study_uid=images[0].StudyInstanceUID,
                patient_id=images[0].PatientID,
                accession="A-77",
                physician=YAMADA,
                character_set=["", "ISO 2022 IR 87"],
            )
        )
        asking = settings.model_copy(update={"worklist_peer": Peer.parse(worklist.peer)})
        analysed(asking, images, truth, tmp_path / "scanner")
    (row,) = steps.rows(settings, Study)
    assert (row.accession_number, row.requested_procedure_id) == ("A-77", "RP-1")
    assert (row.referring_physician, row.order_source) == (YAMADA, "worklist")
    assert ledger(settings, *ORDER) == [("order_found", {"source": "worklist"})]
    everything = repr([row.detail for row in steps.rows(settings, Event)])
    assert "A-77" not in everything
    assert "Yamada" not in everything


@steps.sqlite_only
def test_an_order_of_somebody_with_another_birth_date_is_left_alone(
    settings: Settings, tmp_path: Path
) -> None:
    truth, images = study()
    for image in images:
        image.PatientBirthDate = "19900101"
    uid, patient_id = images[0].StudyInstanceUID, images[0].PatientID
    with archives.wlmscpfs(tmp_path / "worklist") as worklist:
        worklist.plan(planned(study_uid=uid, patient_id=patient_id, accession="A-77"))
        asking = settings.model_copy(update={"worklist_peer": Peer.parse(worklist.peer)})
        analysed(asking, images, truth, tmp_path / "scanner")
    (row,) = steps.rows(settings, Study)
    assert (row.accession_number, row.birth_date) == ("", "19900101")
    assert ledger(settings, *ORDER) == [("order_not_found", {"contradicted": 1})]


@steps.sqlite_only
def test_where_the_worklist_has_no_order_the_pacs_is_asked(
    settings: Settings, orthanc: servers.Orthanc, tmp_path: Path
) -> None:
    truth, images = study()
    in_pacs = steps.images()[0]
    in_pacs.AccessionNumber = "A-8"
    orthanc.upload(steps.save([in_pacs], tmp_path / "pacs")[0].read_bytes())
    with archives.wlmscpfs(tmp_path / "worklist") as worklist:
        asking = settings.model_copy(
            update={
                "worklist_peer": Peer.parse(worklist.peer),
                "query_peer": Peer.parse(orthanc.peer),
            }
        )
        analysed(asking, images, truth, tmp_path / "scanner")
    assert ledger(settings, *ORDER) == [("order_found", {"source": "pacs"})]
    assert steps.rows(settings, Study)[0].accession_number == "A-8"


@steps.sqlite_only
def test_nobody_is_asked_for_an_order_that_the_images_name(
    settings: Settings, tmp_path: Path
) -> None:
    truth, images = study(accession_number="A-1")
    request = Dataset()
    request.RequestedProcedureID = "RP-1"
    for image in images:
        image.ReferringPhysicianName = "Doe^John"
        image.RequestAttributesSequence = [request]
    down = Peer(ae_title="WORKLIST", host=servers.LOOPBACK, port=1)
    asking = settings.model_copy(update={"worklist_peer": down})
    analysed(asking, images, truth, tmp_path / "scanner")
    assert ledger(settings, *ORDER) == []
    assert steps.rows(settings, Study)[0].order_source == "images"


@steps.sqlite_only
def test_an_order_that_nobody_has_is_written_down(settings: Settings, tmp_path: Path) -> None:
    truth, images = study()
    with archives.wlmscpfs(tmp_path / "worklist") as worklist:
        asking = settings.model_copy(update={"worklist_peer": Peer.parse(worklist.peer)})
        analysed(asking, images, truth, tmp_path / "scanner")
    assert ledger(settings, *ORDER) == [("order_not_found", {})]


@steps.sqlite_only
@refused_sockets
def test_with_worklist_and_pacs_down_the_analysis_goes_on(
    settings: Settings, tmp_path: Path
) -> None:
    truth, images = study()
    worklist = Peer(ae_title="WORKLIST", host=servers.LOOPBACK, port=servers.free_port())
    archive = Peer(ae_title="PACS", host=servers.LOOPBACK, port=servers.free_port())
    asking = settings.model_copy(update={"worklist_peer": worklist, "query_peer": archive})
    done = analysed(asking, images, truth, tmp_path / "scanner")
    assert timing(done, "orders") < orders.LONGEST
    assert ledger(settings, *ORDER, "earlier_unknown") == [
        ("order_unknown", {"peer": str(archive)}),
        ("earlier_unknown", {"peer": str(archive)}),
    ]


@steps.sqlite_only
def test_a_worklist_that_hangs_holds_an_analysis_up_for_a_bounded_time(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orders, "LONGEST", 1.0)
    truth, images = study()
    hanging = ("--keep-char-set", "--sleep-before", "30")
    with archives.wlmscpfs(tmp_path / "worklist", options=hanging) as worklist:
        worklist.plan(planned(study_uid=images[0].StudyInstanceUID, patient_id="P"))
        asking = settings.model_copy(update={"worklist_peer": Peer.parse(worklist.peer)})
        job = steps.received(asking, images, tmp_path / "scanner")
        with steps.bench(asking, steps.knowing((truth, images))) as at:
            began = time.monotonic()
            worker.analyse(job.id, at)
            assert time.monotonic() - began < 10.0
    (done,) = steps.rows(settings, Job)
    assert done.state is JobState.ANALYSED
    assert timing(done, "orders") < 2.0
    assert ledger(settings, *ORDER) == [("order_unknown", {"peer": worklist.peer})]


@steps.sqlite_only
@refused_sockets
def test_a_peer_that_was_silent_is_left_alone_for_a_while(
    settings: Settings, tmp_path: Path
) -> None:
    down = Peer(ae_title="WORKLIST", host=servers.LOOPBACK, port=servers.free_port())
    asking = settings.model_copy(update={"worklist_peer": down})
    both = [study(seed) for seed in (1, 2)]
    jobs = [
        steps.received(asking, images, tmp_path / str(number))
        for number, (_, images) in enumerate(both)
    ]
    with steps.bench(asking, steps.knowing(*both)) as at:
        worker.analyse(jobs[0].id, at)
        asked: list[str] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pacs, "order_from_worklist", lambda *_, **__: asked.append("again"))
            worker.analyse(jobs[1].id, at)
    assert asked == []
    assert [what for what, _ in ledger(settings, *ORDER)] == ["order_unknown"] * 2


@steps.sqlite_only
def test_an_order_that_was_found_is_not_asked_for_again(settings: Settings, tmp_path: Path) -> None:
    truth, images = study()
    with archives.wlmscpfs(tmp_path / "worklist") as worklist:
        item = planned(
            study_uid=images[0].StudyInstanceUID, patient_id=images[0].PatientID, procedure="RP-2"
        )
        worklist.plan(item)
        asking = settings.model_copy(update={"worklist_peer": Peer.parse(worklist.peer)})
        job = steps.received(asking, images, tmp_path / "scanner")
        with steps.bench(asking, steps.knowing((truth, images))) as at:
            worker.analyse(job.id, at)
            assert str(images[0].StudyInstanceUID) in at.memory.ordered
            (row,) = steps.rows(settings, Study)
            assert row.referring_physician == ""  # nobody has it: it stays missing
            series = steps.rows(settings, Series)[0]
            with orders.asking(job, series, images, at) as background:
                assert background().identity.requested_procedure_id == "RP-2"
    assert [what for what, _ in ledger(settings, *ORDER)] == ["order_found"]


@steps.sqlite_only
def test_the_order_stands_in_the_report(settings: Settings, tmp_path: Path) -> None:
    truth, images = study()
    with archives.wlmscpfs(tmp_path / "worklist") as worklist:
        worklist.plan(
            planned(
                study_uid=images[0].StudyInstanceUID,
                patient_id=images[0].PatientID,
                accession="A-77",
            )
        )
        asking = settings.model_copy(update={"worklist_peer": Peer.parse(worklist.peer)})
        analysed(asking, images, truth, tmp_path / "scanner")
    document = dcmread(BytesIO(artifacts(settings)[ArtifactKind.SR]))
    assert document.AccessionNumber == "A-77"
    assert document.ReferencedRequestSequence[0].RequestedProcedureID == "RP-1"
