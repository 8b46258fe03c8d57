"""The pages and pictures over HTTP: what they say, what they refuse, what browsers may keep."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from html import unescape
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from sqlalchemy import select, update

from hipscore import phantom, worker
from hipscore.addresses import Peer
from hipscore.domain import RESEARCH_USE, ArtifactKind, Side
from hipscore.lifecycle import DeliveryState, JobState
from hipscore.series import assemble
from hipscore.settings import Settings
from hipscore.store import engine
from hipscore.store.tables import ArtifactRow, Delivery, Instance, Job
from tests.integration import shell_steps as steps
from tests.pages.site import study
from tests.serving import serving

UNKNOWN = "1.2.826.0.1.3680043.8.498.404"
#: either database serves pages; the statements behind them are tested on both
pytestmark = steps.sqlite_only


@pytest.fixture
def api(settings: Settings) -> Iterator[httpx.Client]:
    with (
        serving(settings) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=30.0) as client,
    ):
        yield client


def words(answer: httpx.Response) -> str:
    """What stands on a page."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/html")
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", answer.text)))


def links(answer: httpx.Response) -> list[str]:
    return [unescape(link) for link in re.findall(r'(?:href|src)="(/[^"]*)"', answer.text)]


def png(answer: httpx.Response) -> Image.Image:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    return Image.open(BytesIO(answer.content))


def forget_images(settings: Settings) -> None:
    with steps.opened(settings) as maker:
        writing = engine.sessions(maker.kw["bind"].execution_options(sqlite_begin="BEGIN"))
        with writing.begin() as session:
            gone = datetime(2026, 3, 14, tzinfo=UTC)
            session.execute(update(Instance).values(purged_at=gone))


def test_every_page_says_research_use_and_every_link_works(
    settings: Settings, api: httpx.Client, tmp_path: Path
) -> None:
    assert "Nothing received yet" in words(api.get("/"))
    uid = study(settings, tmp_path, 1)
    pages = ["/", "/queue", *(f"/studies/{uid}/{each}" for each in ("view", "trend"))]
    for page in (*pages, f"/studies/{uid}/ledger/view"):
        answer = api.get(page)
        assert RESEARCH_USE in words(answer)
        assert "HIMRISS" not in answer.text
        assert "style=" not in answer.text
        assert "<style" not in answer.text
        assert not re.search(r"<script(?![^>]* src=)", answer.text)
        numbers = re.sub(r"2\.25\.\d+", "a UID", words(answer))
        assert not re.search(r"\d\.\d{3,}", numbers), page
        assert "script-src 'self'" in answer.headers["content-security-policy"]
        for link in links(answer):
            assert api.get(link).status_code in {200, 202}, link


def test_names_are_text_and_never_markup(
    settings: Settings, api: httpx.Client, tmp_path: Path
) -> None:
    uid = study(settings, tmp_path, 1, dicom={"patient_name": "<b>O'Neil</b>^&amp;"})
    for page in ("/", f"/studies/{uid}/view", f"/studies/{uid}/trend"):
        assert "<b>O" not in api.get(page).text
        assert "<b>O'Neil</b>, &amp;" in words(api.get(page))


def test_the_worklist_is_filtered_by_its_form(
    settings: Settings, api: httpx.Client, tmp_path: Path
) -> None:
    uid = study(settings, tmp_path, 1, dicom={"accession_number": "A77"})
    line = api.get("/worklist").json()["items"][0]
    assert (line["accession_number"], line["sent"], line["patient_id"]) == (
        "A77", None, "HIPSCORE-1",
    )  # fmt: skip
    assert line["slices"].keys() == {"right", "left"}
    assert line["priority"] == {"flag": False, "reason": None}
    for query in ("number=A77", f"number={uid}", "status=scored", "min_score=0,5", "since=7"):
        assert uid in api.get(f"/?{query}").text, query
    for query in ("number=A78", "status=failed", "max_score=0", "priority=1", "study_to=19990101"):
        assert "No study matches." in words(api.get(f"/?{query}")), query
    wrong = words(api.get("/?min_score=many&study_from=yesterday"))
    assert "Score from: 'many' is not a number" in wrong
    assert "Study date from: 'yesterday' is not a date" in wrong


def test_a_patient_is_found_by_post_and_stands_in_no_address(
    settings: Settings, api: httpx.Client, tmp_path: Path
) -> None:
    uid = study(settings, tmp_path, 1, dicom={"patient_name": "Doe^Jane", "patient_id": "P9"})
    for fields in ({"patient_id": "P9"}, {"patient_name": "doe"}, {"patient_name": "Doe, Jane"}):
        answer = api.post("/search", data=fields)
        assert uid in answer.text
        assert not any("P9" in link or "Doe" in link for link in links(answer))
    assert "No study matches." in words(api.post("/search", data={"patient_id": "P"}))
    assert "No study matches." in words(api.post("/search", data={}))


def test_slices_are_those_of_the_images_front_to_back(
    settings: Settings, api: httpx.Client, tmp_path: Path
) -> None:
    uid = study(settings, tmp_path, 1, dicom={"order": "reversed"})
    images = [dcmread(path) for path in sorted(tmp_path.glob("*.dcm"))]
    volume = assemble(images).volume
    stack = api.get(f"/studies/{uid}/slices.json").json()
    assert [each["sop_instance_uid"] for each in stack["slices"]] == [
        source.sop_instance_uid for source in volume.sources
    ]
    assert (stack["left_border"], stack["right_border"]) == ("R", "L")
    low, high = stack["window_low"], stack["window_high"]
    for number in (1, 8, 16):
        shown = np.asarray(png(api.get(f"/studies/{uid}/slices/{number}.png")), dtype=float)
        # phantoms are stored as they are looked at: right on the left, head up
        expected = np.clip((volume.voxels[number - 1] - low) / (high - low), 0, 1) * 255
        assert np.abs(shown - expected).max() <= 1.0
    bright = png(api.get(f"/studies/{uid}/slices/8.png?low={low}&high={low + (high - low) / 4}"))
    plain = png(api.get(f"/studies/{uid}/slices/8.png"))
    assert np.asarray(bright).mean() > np.asarray(plain).mean()


@pytest.mark.parametrize("enhanced", (False, True))
def test_outlines_lie_on_the_true_structures(
    settings: Settings, api: httpx.Client, tmp_path: Path, enhanced: bool
) -> None:
    uid = study(settings, tmp_path, 1, dicom={"enhanced": enhanced})
    truth = steps.make_phantom(1)
    masks = {each.side: each.voxels for each in truth.masks}
    stack = api.get(f"/studies/{uid}/slices.json").json()
    assert len(stack["slices"]) == 16
    assert (stack["slices"][0]["frame_number"] is not None) is enhanced
    head = masks[Side.RIGHT][0] | masks[Side.LEFT][0]
    z = int(head.sum(axis=(1, 2)).argmax())
    address = f"/studies/{uid}/slices/{z + 1}/overlay.png"
    filled = png(api.get(f"{address}?style=filled")).convert("RGBA")
    inside = np.asarray(filled.resize((128, 128), Image.Resampling.NEAREST))[..., 3] > 0
    true = masks[Side.RIGHT][:, z].any(axis=0) | masks[Side.LEFT][:, z].any(axis=0)
    overlap = 2 * (inside & true).sum() / (inside.sum() + true.sum())
    assert overlap > 0.95
    contour = np.asarray(png(api.get(address)).convert("RGBA"))[..., 3]
    assert 0 < (contour > 0).mean() < (np.asarray(filled)[..., 3] > 0).mean()
    outlined = [each["number"] for each in stack["slices"] if each["outlined"]]
    assert z + 1 in outlined
    empty = png(api.get(f"/studies/{uid}/slices/1/overlay.png")).convert("RGBA")
    assert 1 in outlined or not np.asarray(empty)[..., 3].any()


def test_pictures_of_a_job_may_be_kept_for_an_hour_and_asked_for_by_their_tag(
    settings: Settings, api: httpx.Client, tmp_path: Path
) -> None:
    uid = study(settings, tmp_path, 1)
    for path in ("slices/5.png", "slices/5/overlay.png"):
        address = f"/studies/{uid}/{path}"
        first = api.get(address)
        assert first.headers["cache-control"] == "private, no-cache"
        again = api.get(address, headers={"If-None-Match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        other = api.get(address, headers={"If-None-Match": '"other"'})
        assert other.status_code == 200
    for path, kept in (
        ("slices/5.png", "private, max-age=3600, immutable"),
        ("slices/5/overlay.png", "private, no-cache"),  # it may be withdrawn
    ):
        answer = api.get(f"/studies/{uid}/{path}?job=1")
        assert answer.headers["cache-control"] == kept


def test_pictures_that_cannot_be_shown(
    settings: Settings, api: httpx.Client, tmp_path: Path
) -> None:
    uid = study(settings, tmp_path / "1", 1)
    other = study(settings, tmp_path / "2", 2)
    for path, status in (
        (f"/studies/{UNKNOWN}/slices.json", 404),
        (f"/studies/{UNKNOWN}/view", 404),
        (f"/studies/{UNKNOWN}/trend", 404),
        (f"/studies/{UNKNOWN}/ledger/view", 404),
        (f"/studies/{uid}/slices/17.png", 404),
        (f"/studies/{uid}/slices/0.png", 422),
        (f"/studies/{uid}/slices/5.png?job=99", 404),
        (f"/studies/{uid}/slices/5.png?job=2", 404),  # the job of the other study
        (f"/studies/{other}/slices/5.png?job=2", 200),
        (f"/studies/{uid}/slices/5.png?low=5", 422),
        (f"/studies/{uid}/slices/5.png?low=5&high=5", 422),
        (f"/studies/{uid}/slices/5.png?low=nan&high=5", 422),
        (f"/studies/{uid}/slices/5/overlay.png?style=none", 422),
        ("/studies/1.2'--/view", 422),
    ):
        assert api.get(path).status_code == status, path
    forget_images(settings)
    gone = api.get(f"/studies/{uid}/slices/5.png")
    assert gone.status_code == 410
    assert "purged on 2026-03-14" in gone.json()["detail"]
    assert "The images were purged on 2026-03-14" in words(api.get(f"/studies/{uid}/view"))


def test_images_that_are_no_stack_have_a_page_without_pictures(
    settings: Settings, api: httpx.Client, tmp_path: Path
) -> None:
    images = steps.images()
    images[3].PixelSpacing = [5.0, 5.0]
    job = steps.received(settings, images, tmp_path)
    with steps.bench(settings) as at:
        worker.analyse(job.id, at)
    uid = images[0].StudyInstanceUID
    assert "mixed_geometry" in words(api.get(f"/studies/{uid}/view"))
    told = api.get(f"/studies/{uid}/slices.json")
    assert told.status_code == 404
    assert "no stack of slices" in told.json()["detail"]


def test_an_operator_retries_from_the_page(
    settings: Settings, api: httpx.Client, tmp_path: Path
) -> None:
    there = settings.model_copy(update={"destinations": (Peer.parse("PACS@127.0.0.1:1"),)})
    uid = study(there, tmp_path, 1)
    with steps.opened(settings) as maker:
        writing = engine.sessions(maker.kw["bind"].execution_options(sqlite_begin="BEGIN"))
        with writing.begin() as session:
            session.execute(update(Delivery).values(state=DeliveryState.EXHAUSTED))
    assert "given up after the last attempt" in words(api.get(f"/studies/{uid}/view"))
    assert "needs you" in words(api.get("/"))
    back = f"/studies/{uid}/view"
    answer = api.post("/queue/deliveries/1/retry", data={"next": back})
    assert (answer.status_code, answer.headers["location"]) == (303, back)
    assert steps.rows(settings, Delivery)[0].state is DeliveryState.PENDING
    for wanted in ("https://evil.example/", "//evil.example", "/\\evil.example"):
        answer = api.post("/queue/deliveries/2/retry", data={"next": wanted})
        assert answer.headers["location"] == "/"
    refused = api.post("/queue/jobs/1/retry", data={"next": back})
    assert refused.status_code == 409
    assert "Not possible now" in refused.text


def test_a_withdrawn_result_is_not_shown_as_one(
    settings: Settings, api: httpx.Client, tmp_path: Path
) -> None:
    uid = study(settings, tmp_path, 1)
    score = api.get(f"/studies/{uid}/score").json()["unet_score"]
    assert f"{score:.2f}" in words(api.get(f"/studies/{uid}/view"))
    address = f"/studies/{uid}/slices/5/overlay.png"
    seen = api.get(address)
    assert seen.status_code == 200
    assert any(each["outlined"] for each in api.get(f"/studies/{uid}/slices.json").json()["slices"])
    done = api.post("/queue/jobs/1/withdraw", data={"reason": "quality", "next": "/queue"})
    assert done.status_code == 303, done.text
    page = words(api.get(f"/studies/{uid}/view"))
    assert "An operator has withdrawn the result" in page
    assert f"{score:.2f}" not in page
    for gone in (address, f"{address}?job=1"):
        answer = api.get(gone, headers={"If-None-Match": seen.headers["etag"]})
        assert answer.status_code == 410
        assert "was withdrawn on" in answer.json()["detail"]
    listed = api.get(f"/studies/{uid}/slices.json").json()["slices"]
    assert not any(each["outlined"] for each in listed)
    assert api.get(f"/studies/{uid}/slices/5.png").status_code == 200  # the image stays
    worklist = words(api.get("/"))
    assert f"{score:.2f}" not in worklist
    assert "an operator has withdrawn the result" in worklist


def test_what_was_withdrawn_is_called_so_and_goes_out_no_more(
    settings: Settings, api: httpx.Client, tmp_path: Path
) -> None:
    there = settings.model_copy(update={"destinations": (Peer.parse("PACS@127.0.0.1:1"),)})
    uid = study(there, tmp_path, 1)
    refused = {"state": DeliveryState.REFUSED, "error": "not taken"}
    with steps.opened(settings) as maker:
        writing = engine.sessions(maker.kw["bind"].execution_options(sqlite_begin="BEGIN"))
        with writing.begin() as session:
            session.execute(update(Delivery).values(**refused))
    assert "Send again" in words(api.get(f"/studies/{uid}/view"))
    api.post("/queue/jobs/1/withdraw", data={"reason": "quality", "next": "/queue"})
    assert "Send again" not in words(api.get(f"/studies/{uid}/view"))
    assert "Send again" not in words(api.get("/queue"))
    line = api.get("/worklist").json()["items"][0]
    assert (line["status"], line["sent"]) == ("failed", None)  # nothing had gone, nothing is told
    page = api.get("/?status=withdrawn")
    assert uid in page.text
    assert '<span class="status withdrawn">withdrawn</span>' in page.text
    assert "No study matches." in words(api.get("/?status=failed"))


def test_equal_pictures_are_one_line(settings: Settings, api: httpx.Client, tmp_path: Path) -> None:
    there = settings.model_copy(update={"destinations": (Peer.parse("PACS@127.0.0.1:1"),)})
    uid = study(there, tmp_path, 1)
    with steps.opened(settings) as maker:
        writing = engine.sessions(maker.kw["bind"].execution_options(sqlite_begin="BEGIN"))
        with writing.begin() as session:
            made = session.scalars(select(ArtifactRow).order_by(ArtifactRow.id)).all()
            for number, row in enumerate(made[:2]):
                row.kind, row.number = ArtifactKind.SC, 100 + number
            sent = session.scalars(select(Delivery).order_by(Delivery.id)).all()
            assert len(sent) == 2
            sent[1].state = DeliveryState.EXHAUSTED
    for page in (words(api.get(f"/studies/{uid}/view")), words(api.get("/queue"))):
        assert "2 × Pictures (DICOM secondary capture) given up after the last attempt" in page
        assert "each of the 2" in page
        assert "waits to be sent" in page


def test_a_browser_gets_a_page_where_programs_get_a_problem_document(api: httpx.Client) -> None:
    browser = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
    for path, status, text in (
        ("/nothing", 404, "There is no such page."),
        (f"/studies/{UNKNOWN}/view", 404, f"Study {UNKNOWN} is unknown."),
        ("/studies/1.x/view", 422, "a UID has nothing but digits and dots"),
    ):
        page = api.get(path, headers=browser)
        assert page.status_code == status
        assert page.headers["content-type"].startswith("text/html")
        assert text in page.text
        assert RESEARCH_USE in page.text
        assert links(page).count("/") == 2
        for accepted in ("*/*", "application/json", "application/json, text/html;q=0.5"):
            plain = api.get(path, headers={"Accept": accepted})
            assert plain.status_code == status
            assert plain.headers["content-type"] == "application/problem+json"
    elsewhere = api.get("/", headers={**browser, "Host": "evil.example"})
    assert elsewhere.status_code == 421
    assert "HIPSCORE_HTTP_ALLOWED_HOSTS" in elsewhere.text
    assert links(elsewhere) == []


def test_a_flag_is_explained_where_there_are_flags(
    settings: Settings, api: httpx.Client, tmp_path: Path
) -> None:
    low = settings.model_copy(update={"priority_score": 0.001})
    assert "Flagged:" not in words(api.get("/"))
    study(low, tmp_path, 1)
    assert "A flag never changes the order." in words(api.get("/"))


def test_a_superseded_result_is_named_as_such(
    settings: Settings, api: httpx.Client, tmp_path: Path
) -> None:
    truth = steps.make_phantom()
    images = phantom.to_datasets(truth)
    with steps.bench(settings, steps.knowing((truth, images))) as at:
        first = steps.received(settings, steps.unannounced(images)[:-1], tmp_path / "1")
        worker.analyse(first.id, at)
        second = steps.received(settings, images, tmp_path / "2")
        worker.analyse(second.id, at)
    assert second.supersedes_id == first.id
    page = words(api.get(f"/studies/{images[0].StudyInstanceUID}/view"))
    assert "This result replaces an earlier one" in page
    assert f"superseded by job {second.id}" in page


def test_the_trend_is_that_of_one_patient(
    settings: Settings, api: httpx.Client, tmp_path: Path
) -> None:
    jane = {"patient_id": "P1", "patient_name": "Doe^Jane"}
    first = study(settings, tmp_path / "1", 1, dicom={**jane, "study_date": "20240101"})
    fewer = {"slices": 11, "slice_mm": 8.0}
    other = study(settings, tmp_path / "2", 2, dicom={**jane, "study_date": "20250101"}, **fewer)
    study(settings, tmp_path / "3", 3, dicom={"patient_id": "P2"})
    trend = api.get(f"/studies/{first}/trend.json").json()
    assert [each["study_instance_uid"] for each in trend["points"]] == [first, other]
    own, later = trend["points"]
    assert (own["comparable"], own["remarks"]) == (True, [])
    assert later["comparable"] is False
    assert any("in this study" in each for each in later["remarks"])
    page = words(api.get(f"/studies/{first}/trend"))
    assert "1 study does not compare with this one" in page
    assert "Doe, Jane" in page


def test_the_queue_counts_and_lists(settings: Settings, api: httpx.Client, tmp_path: Path) -> None:
    steps.received(settings, steps.images(), tmp_path)
    assert steps.rows(settings, Job)[0].state is JobState.QUEUED
    page = words(api.get("/queue"))
    assert "The oldest analysis that waits was opened" in page
    assert "Everything has arrived." in page
    assert "1 analysis, newest first" in page
    assert "None." in words(api.get("/queue?state=FAILED"))


def test_the_ledger_shows_what_is_asked_for(
    settings: Settings, api: httpx.Client, tmp_path: Path
) -> None:
    uid = study(settings, tmp_path, 1)
    everything = words(api.get(f"/studies/{uid}/ledger/view"))
    assert "6 of 6 lines" in everything
    assert "expected_count" in everything
    assert "3 of 6 lines" in words(api.get(f"/studies/{uid}/ledger/view?job=1&delivery="))
    assert api.get(f"/studies/{uid}/ledger/view?job=x").status_code == 422


def test_files_of_the_pages_are_served_and_nothing_else(api: httpx.Client) -> None:
    for name, kind in (
        ("pages.css", "text/css"),
        ("study.js", "text/javascript"),
        ("worklist.js", "text/javascript"),
        ("theme.js", "text/javascript"),
        ("icon.svg", "image/svg+xml"),
    ):
        answer = api.get(f"/static/{name}")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(kind)
    for path in ("/static/../study.py", "/static/..%2fstudy.py", "/static/", "/static/none.css"):
        assert api.get(path).status_code == 404, path
