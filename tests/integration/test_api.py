"""The REST API behind a real server: every route, and what each mistake is answered with."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from pydantic import SecretStr
from pydicom import dcmread
from pydicom.dataset import Dataset
from sqlalchemy import update

from hipscore import phantom, worker
from hipscore.addresses import Peer
from hipscore.api import ApiError, run_api
from hipscore.domain import ArtifactKind
from hipscore.lifecycle import DeliveryState
from hipscore.settings import Settings
from hipscore.store import engine
from hipscore.store.tables import ArtifactRow, Delivery, Job
from tests import servers
from tests.analytic import Oracle
from tests.integration import shell_steps as steps
from tests.serving import serving as behind_uvicorn

UNKNOWN = "1.2.826.0.1.3680043.8.498.404"


@contextlib.contextmanager
def serving(settings: Settings) -> Iterator[httpx.Client]:
    """A client of the API behind uvicorn."""
    with (
        behind_uvicorn(settings) as base,
        httpx.Client(base_url=base, trust_env=False, timeout=30.0) as client,
    ):
        yield client


@pytest.fixture
def api(settings: Settings) -> Iterator[httpx.Client]:
    with serving(settings) as client:
        yield client


def analysed(settings: Settings, folder: Path, seed: int = 1, **more: Any) -> str:
    """A study is received and scored; its UID."""
    truth = steps.make_phantom(seed, **more)
    images = phantom.to_datasets(truth)
    job = steps.received(settings, images, folder)
    with steps.bench(settings, steps.knowing((truth, images))) as at:
        worker.analyse(job.id, at)
    return str(images[0].StudyInstanceUID)


def problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The problem document of an answer that must be one (RFC 9457)."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body["status"] == status
    assert body["title"]
    assert body["detail"]
    return body


def test_a_final_score_has_the_documented_shape(
    settings: Settings, api: httpx.Client, tmp_path: Path
) -> None:
    uid = analysed(settings, tmp_path)
    answer = api.get(f"/studies/{uid}/score")
    assert answer.status_code == 200
    score = answer.json()
    assert list(score) == [
        "study_instance_uid", "series_instance_uid", "status", "reason", "unet_score", "hips",
        "model", "engine", "quality", "change", "priority", "created_at", "supersedes", "artifacts",
    ]  # fmt: skip
    assert score["status"] == "scored"
    assert score["unet_score"] == pytest.approx(sum(hip["unet_score"] for hip in score["hips"]))
    assert set(score["artifacts"]) == {"seg", "sr", "overlay", "pdf"}
    for hip in score["hips"]:
        assert hip["slices_used"] == len(hip["slices"])
        assert {
            "sop_instance_uid", "instance_number", "group", "ratio", "head_mm2", "bme_mm2",
            "synovitis_mm2", "bme_ratio", "synovitis_ratio",
        } == set(hip["slices"][0])  # fmt: skip


@steps.sqlite_only
def test_every_artifact_can_be_downloaded(
    settings: Settings, api: httpx.Client, tmp_path: Path
) -> None:
    uid = analysed(settings, tmp_path)
    links = api.get(f"/studies/{uid}/score").json()["artifacts"]
    modalities = {}
    for kind in ("seg", "sr"):
        answer = api.get(links[kind])
        assert answer.headers["content-type"] == "application/dicom"
        assert answer.headers["content-disposition"] == f'attachment; filename="{kind}-{uid}.dcm"'
        modalities[kind] = dcmread(BytesIO(answer.content)).Modality
    assert modalities == {"seg": "SEG", "sr": "SR"}
    paper = api.get(links["pdf"])
    assert paper.headers["content-type"] == "application/pdf"
    assert paper.content.startswith(b"%PDF-")
    assert paper.content.rstrip(b"\r\n").endswith(b"%%EOF")
    picture = api.get(links["overlay"])
    assert picture.headers["content-type"] == "image/png"
    assert picture.content.startswith(b"\x89PNG")


def test_a_pending_score_is_202_with_the_time_to_ask_again(
    settings: Settings, api: httpx.Client, tmp_path: Path
) -> None:
    images = steps.images()
    with steps.listening(settings) as port:
        steps.storescu(port, steps.save(images[:3], tmp_path / "part"))
    uid = images[0].StudyInstanceUID
    receiving = api.get(f"/studies/{uid}/score")
    assert receiving.status_code == 202
    assert receiving.json()["status"] == "queued"
    assert int(receiving.headers["retry-after"]) > 0

    steps.received(settings, images, tmp_path / "all")
    queued = api.get(f"/studies/{uid}/score")
    assert queued.status_code == 202
    assert queued.json()["series_instance_uid"] == images[0].SeriesInstanceUID
    assert queued.json()["unet_score"] is None


def no_hips() -> list[Dataset]:
    """A head that is labelled as a pelvis: the rules let it in."""
    images = phantom.to_datasets(steps.make_phantom(anatomy="brain"))
    for each in images:
        each.BodyPartExamined = "PELVIS"
    return images


@steps.sqlite_only
def test_a_study_that_cannot_be_scored_says_why(
    settings: Settings, api: httpx.Client, tmp_path: Path
) -> None:
    images = no_hips()
    job = steps.received(settings, images, tmp_path)
    with steps.bench(settings) as at:
        worker.analyse(job.id, at)
    answer = api.get(f"/studies/{images[0].StudyInstanceUID}/score")
    assert answer.status_code == 200
    assert answer.json()["status"] == "not_scorable"
    assert answer.json()["reason"]["code"] == "no_hip_found"
    assert answer.json()["unet_score"] is None


@steps.sqlite_only
def test_no_score_is_not_final_while_another_series_arrives(
    settings: Settings, api: httpx.Client, tmp_path: Path
) -> None:
    images = no_hips()
    job = steps.received(settings, images, tmp_path / "1")
    with steps.bench(settings) as at:
        worker.analyse(job.id, at)
    uid = str(images[0].StudyInstanceUID)
    assert api.get(f"/studies/{uid}/score").json()["status"] == "not_scorable"
    more = steps.images(2)
    for image in more:
        image.StudyInstanceUID = uid
    with steps.listening(settings) as port:
        steps.storescu(port, steps.save(more[:3], tmp_path / "2"))

    answer = api.get(f"/studies/{uid}/score")
    assert answer.status_code == 202
    assert answer.json()["status"] == "queued"
    assert answer.json()["series_instance_uid"] == more[0].SeriesInstanceUID
    assert answer.json()["reason"] is None
    (in_list,) = api.get("/studies").json()["items"]
    (in_worklist,) = api.get("/worklist").json()["items"]
    for line in (api.get(f"/studies/{uid}").json(), in_list, in_worklist):
        assert (line["status"], line["reason"]) == ("queued", None)
    assert '<span class="status queued">waiting</span>' in api.get("/").text


def test_a_failed_study_says_so_and_can_be_retried(
    settings: Settings, api: httpx.Client, tmp_path: Path
) -> None:
    truth = steps.make_phantom()
    images = phantom.to_datasets(truth)
    job = steps.received(settings, images, tmp_path)
    with steps.bench(settings, _Broken()) as at:
        worker.analyse(job.id, at)
    url = f"/studies/{images[0].StudyInstanceUID}/score"
    assert api.get(url).status_code == 200
    assert api.get(url).json()["status"] == "failed"

    retried = api.post(f"/jobs/{job.id}/retry")
    assert retried.status_code == 202
    assert retried.json()["state"] == "QUEUED"
    assert api.get(url).status_code == 202
    with steps.bench(settings, steps.knowing((truth, images))) as at:
        worker.analyse(job.id, at)
    assert api.get(url).json()["status"] == "scored"
    problem(api.post(f"/jobs/{job.id}/retry"), 409)


class _Broken(Oracle):
    def localise(self, planes: Any) -> Any:
        raise RuntimeError


@steps.sqlite_only
def test_a_study_of_scouts_has_no_score(
    settings: Settings, api: httpx.Client, tmp_path: Path
) -> None:
    images = steps.images()
    for image in images:
        image.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    with steps.listening(settings) as port:
        steps.storescu(port, steps.save(images, tmp_path))
        uid = images[0].StudyInstanceUID
        servers.wait_until(
            lambda: api.get(f"/studies/{uid}").json()["status"] is None, what="it is ignored"
        )
    assert "localizer" in problem(api.get(f"/studies/{uid}/score"), 404)["detail"]


@steps.sqlite_only
@pytest.mark.parametrize(
    "path",
    ("score", "ledger", "artifacts/seg", ""),
)
def test_an_unknown_study_is_404(api: httpx.Client, path: str) -> None:
    assert UNKNOWN in problem(api.get(f"/studies/{UNKNOWN}/{path}".rstrip("/")), 404)["detail"]


@steps.sqlite_only
@pytest.mark.parametrize(
    "uid",
    (
        "x", "1..2", ".1", "1.", "1" * 65, "1.2;drop table jobs", "1.2%0A", "1.2%00",
        "%F0%9F%98%80", "1.2'--", "%2e%2e", "1.2%20", "１.２", "-1", "1.2e3",
    ),
)  # fmt: skip
def test_what_is_not_a_uid_never_reaches_the_database(api: httpx.Client, uid: str) -> None:
    for path in ("/score", "", "/ledger", "/artifacts/seg"):
        body = problem(api.get(f"/studies/{uid}{path}"), 422)
        assert body["errors"][0]["where"] == "path.uid"


@steps.sqlite_only
@pytest.mark.parametrize(
    ("method", "path", "status"),
    (
        ("GET", "/nothing", 404),
        ("GET", "/studies/1.2/artifacts/xml", 422),
        ("GET", "/studies/1.2/artifacts/../../etc/passwd", 404),
        ("GET", "/studies/1.2/artifacts/..%2f..%2fetc%2fpasswd", 404),
        ("DELETE", "/studies/1.2", 405),
        ("POST", "/studies/1.2/score", 405),
        ("GET", "/jobs/1/retry", 405),
        ("POST", "/jobs/0/retry", 422),
        ("POST", "/jobs/-1/retry", 422),
        ("POST", "/jobs/1.5/retry", 422),
        ("POST", "/jobs/99999999999999999999999/retry", 422),
        ("POST", "/jobs/9223372036854775807/retry", 404),
        ("POST", "/jobs/7/retry", 404),
        ("POST", "/deliveries/7/retry", 404),
        ("POST", "/deliveries/x/retry", 422),
        ("GET", "/studies?limit=0", 422),
        ("GET", "/studies?limit=1000000", 422),
        ("GET", "/studies?after=abc", 422),
        ("GET", "/jobs?state=SLEEPING", 422),
        ("GET", "/worklist?order=lowest", 422),
    ),
)
def test_mistakes_are_problem_documents(
    api: httpx.Client, method: str, path: str, status: int
) -> None:
    problem(api.request(method, path), status)


@given(data=st.data())
@settings_of_hypothesis(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_no_input_makes_it_fail(api: httpx.Client, data: st.DataObject) -> None:
    anything = st.text(max_size=80) | st.integers().map(str) | st.just("1.2.840")
    operation = data.draw(
        st.sampled_from(
            (
                ("GET", "/studies/{}/score"),
                ("GET", "/studies/{}/ledger"),
                ("GET", "/studies/{}/artifacts/{}"),
                ("GET", "/studies?after={}&limit={}"),
                ("GET", "/jobs?state={}&after={}"),
                ("GET", "/worklist?order={}&limit={}"),
                ("GET", "/worklist?order=highest&after={}&below={}"),
                ("POST", "/jobs/{}/retry"),
                ("POST", "/deliveries/{}/retry"),
                ("GET", "/{}"),
                ("PUT", "/{}"),
            )
        )
    )
    method, template = operation
    values = [quote(data.draw(anything), safe="") for _ in range(template.count("{}"))]
    body = data.draw(st.binary(max_size=200))
    answer = api.request(method, template.format(*values), content=body)
    assert answer.status_code < 500
    if answer.status_code >= 400:
        problem(answer, answer.status_code)


@steps.sqlite_only
def test_a_method_that_is_not_allowed_names_those_that_are(api: httpx.Client) -> None:
    assert "GET" in api.delete("/studies").headers["allow"]


def test_lists_are_paged_without_gaps_or_repeats(
    settings: Settings, api: httpx.Client, tmp_path: Path
) -> None:
    for seed in range(5):
        steps.received(settings, steps.images(seed), tmp_path / str(seed))
    for start, name in (("/studies?limit=2", "study_instance_uid"), ("/jobs?limit=2", "id")):
        seen, path = [], start
        while path:
            page = api.get(path).json()
            seen += [item[name] for item in page["items"]]
            path = page["next"]
        assert len(seen) == 5
        assert len(set(seen)) == 5
    assert api.get("/jobs?state=FAILED").json() == {"items": [], "next": None}
    assert len(api.get("/jobs?state=QUEUED").json()["items"]) == 5


def test_a_study_shows_series_jobs_and_deliveries(
    settings: Settings, api: httpx.Client, tmp_path: Path
) -> None:
    configured = settings.model_copy(update={"destinations": (Peer.parse("PACS@127.0.0.1:1"),)})
    uid = analysed(configured, tmp_path)
    body = api.get(f"/studies/{uid}").json()
    (series,) = body["details"]
    assert series["images"] == body["images"] == 16
    assert series["state"] == "MATCHED"
    (job,) = series["jobs"]
    assert job["state"] == "ANALYSED"
    assert {"assemble", "segment", "sr"} <= set(job["seconds"])
    assert {each["artifact"] for each in job["deliveries"]} == {"seg", "sr"}
    assert {each["state"] for each in job["deliveries"]} == {"PENDING"}


def test_a_delivery_can_be_sent_again(
    settings: Settings, storescp: servers.StoreScp, api: httpx.Client, tmp_path: Path
) -> None:
    configured = settings.model_copy(update={"destinations": (Peer.parse(storescp.peer),)})
    analysed(configured, tmp_path)
    first, _ = steps.rows(settings, Delivery)
    with steps.bench(configured) as at:
        worker.deliver(first.id, at)
        assert steps.rows(settings, Delivery)[0].state is DeliveryState.SENT
        again = api.post(f"/deliveries/{first.id}/retry")
        assert again.status_code == 202
        assert again.json()["state"] == "PENDING"
        # the newest message is this delivery's: it does not wait for the reaper
        message = steps.queued(settings, "delivery")[0]
        assert json.loads(base64.b64decode(message["body"]))[0] == [first.id]
        worker.deliver(first.id, at)
    # what else of its job was due went along the first time, and stays where it is
    one, _, again_one = storescp.received()
    assert steps.data_set(one.read_bytes()) == steps.data_set(again_one.read_bytes())
    assert {row.state for row in steps.rows(settings, Delivery)} == {DeliveryState.SENT}


def test_the_ledger_tells_the_whole_story(
    settings: Settings, api: httpx.Client, tmp_path: Path
) -> None:
    uid = analysed(settings, tmp_path)
    told = api.get(f"/studies/{uid}/ledger").json()
    (verdict,) = told["verdict"]
    assert verdict["sentences"][0].startswith("scored ")
    assert verdict["what_next"] == ["nothing to do"]
    events = told["events"]
    assert [(each["what"], each["to_state"]) for each in events] == [
        ("open", "RECEIVING"),
        ("close", "COMPLETE"),
        ("match", "MATCHED"),
        ("open", "QUEUED"),
        ("claim", "ANALYSING"),
        ("analysed", "ANALYSED"),
    ]


@steps.sqlite_only
def test_what_was_purged_is_gone_and_says_so(
    settings: Settings, api: httpx.Client, tmp_path: Path
) -> None:
    uid = analysed(settings, tmp_path)
    connected = engine.connect(settings.database)
    with engine.sessions(connected).begin() as session:
        gone = update(ArtifactRow).where(ArtifactRow.kind == ArtifactKind.SEG)
        session.execute(gone.values(purged_at=datetime(2026, 3, 14, tzinfo=UTC)))
    connected.dispose()
    told = problem(api.get(f"/studies/{uid}/artifacts/seg"), 410)
    assert "purged on 2026-03-14" in told["detail"]
    assert set(api.get(f"/studies/{uid}/score").json()["artifacts"]) == {
        "sr",
        "overlay",
        "pdf",
    }


def test_the_worklist_can_start_with_the_highest_score(
    settings: Settings, api: httpx.Client, tmp_path: Path
) -> None:
    mild = analysed(settings, tmp_path / "1", 1, burden=phantom.Burden.MILD)
    severe = analysed(settings, tmp_path / "2", 2, burden=phantom.Burden.SEVERE)
    steps.received(settings, steps.images(3), tmp_path / "3")
    lines = api.get("/worklist?order=highest").json()["items"]
    assert [line["study_instance_uid"] for line in lines][:2] == [severe, mild]
    assert lines[0]["unet_score"] == pytest.approx(lines[0]["right"] + lines[0]["left"])
    assert lines[2]["status"] == "queued"
    newest = api.get("/worklist").json()["items"]
    assert newest[0]["status"] == "queued"
    for order, whole in (("highest", lines), ("newest", newest)):
        seen, path = [], f"/worklist?order={order}&limit=1"
        while path:
            page = api.get(path).json()
            seen += page["items"]
            path = page["next"]
        assert seen == whole


def test_health_and_readiness(settings: Settings, api: httpx.Client) -> None:
    assert api.get("/healthz").json() == {"status": "ok"}
    ready = api.get("/readyz")
    assert ready.status_code == 200
    assert ready.json() == {
        "ready": True,
        "checks": {"database": "ok", "spool": "ok", "broker": "ok"},
    }


def test_not_ready_before_the_database_is_migrated(settings: Settings, api: httpx.Client) -> None:
    engine.downgrade(settings.database)
    answer = api.get("/readyz")
    assert answer.status_code == 503
    assert "hipscore db upgrade" in answer.json()["checks"]["database"]


@steps.sqlite_only
def test_ready_without_the_broker_but_says_so(settings: Settings, tmp_path: Path) -> None:
    alone = settings.model_copy(
        update={"broker_url": SecretStr(f"redis+socket://{tmp_path}/no.sock")}
    )
    with serving(alone) as client:
        answer = client.get("/readyz")
    assert answer.status_code == 200
    assert "down" in answer.json()["checks"]["broker"]


def test_a_database_that_is_away_is_503(tmp_path: Path, redis: servers.Redis) -> None:
    away = Settings(
        data_dir=tmp_path,
        database_url=SecretStr(f"postgresql+psycopg://nobody@127.0.0.1:{servers.free_port()}/x"),
        broker_url=SecretStr(redis.url),
        http_port=servers.free_port(),
    )
    with serving(away) as client:
        answer = client.get(f"/studies/{UNKNOWN}/score")
        problem(answer, 503)
        assert int(answer.headers["retry-after"]) > 0
        assert client.get("/readyz").status_code == 503
        assert client.get("/healthz").status_code == 200
        assert "hipscore_database_up 0.0" in client.get("/metrics").text


def test_metrics_count_what_the_database_holds(
    settings: Settings, api: httpx.Client, tmp_path: Path
) -> None:
    analysed(settings, tmp_path / "1")
    steps.received(settings, steps.images(2), tmp_path / "2")
    answer = api.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    lines = answer.text.splitlines()
    assert 'hipscore_series{state="MATCHED"} 2.0' in lines
    assert 'hipscore_jobs{state="ANALYSED"} 1.0' in lines
    assert 'hipscore_jobs{state="QUEUED"} 1.0' in lines
    assert "hipscore_uncommitted 0.0" in lines
    for which in ("queued", "undelivered", "uncommitted"):
        assert any(line.startswith(f"hipscore_oldest_{which}_seconds ") for line in lines)
    assert any(
        line.startswith('hipscore_job_stage_seconds{quantile="0.5",stage="segment"}')
        for line in lines
    ) or any(
        line.startswith('hipscore_job_stage_seconds{stage="segment",quantile="0.5"}')
        for line in lines
    )


@steps.sqlite_only
def test_a_page_of_another_site_cannot_change_anything(api: httpx.Client) -> None:
    problem(api.post("/jobs/7/retry", headers={"Origin": "https://evil.example"}), 403)
    own = str(api.base_url).rstrip("/")
    problem(api.post("/jobs/7/retry", headers={"Origin": own}), 404)


@steps.sqlite_only
def test_a_name_that_is_not_ours_gets_no_answer(settings: Settings) -> None:
    named = settings.model_copy(update={"http_allowed_hosts": ("hip.example.org",)})
    with serving(named) as client:
        for host in ("evil.example", "evil.example:80", "localhost.evil.example", "x" * 300, "@"):
            refused = problem(client.get("/healthz", headers={"Host": host}), 421)
            assert "HIPSCORE_HTTP_ALLOWED_HOSTS" in refused["detail"]
            assert len(refused["detail"]) < 400
        for host in (
            "localhost", "LOCALHOST:8080", "127.0.0.1", "[::1]:8080", "10.0.0.7", "[fe80::1]",
            "hip.example.org", "Hip.Example.ORG.:8080",
        ):  # fmt: skip
            assert client.get("/healthz", headers={"Host": host}).status_code == 200, host


@steps.sqlite_only
def test_the_name_it_binds_to_is_ours_and_a_star_is_every_name(settings: Settings) -> None:
    for change in ({"http_host": "hip.internal"}, {"http_allowed_hosts": ("*",)}):
        with serving(settings.model_copy(update=change)) as client:
            answer = client.get("/healthz", headers={"Host": "hip.internal"})
            assert answer.status_code == 200, change


@steps.sqlite_only
def test_a_disk_that_fails_is_told_and_no_error(settings: Settings, api: httpx.Client) -> None:
    shutil.rmtree(settings.data_dir)
    settings.data_dir.touch()  # statvfs(2) below it fails with ENOTDIR
    ready = api.get("/readyz")
    assert ready.status_code == 503
    assert ready.json()["checks"]["spool"] == "cannot be read"
    metrics = api.get("/metrics")
    assert metrics.status_code == 200
    assert "hipscore_spool_free_bytes 0.0" in metrics.text
    assert "hipscore_database_up 1.0" in metrics.text


@steps.sqlite_only
def test_the_openapi_document_is_complete(api: httpx.Client) -> None:
    document = api.get("/openapi.json").json()
    operations = {
        (method.upper(), path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    elsewhere = {each for each in operations if each[1].startswith(("/dicomweb/", "/fhir/"))}
    assert {
        ("POST", "/dicomweb/studies"),
        ("POST", "/dicomweb/studies/{uid}"),
        ("PUT", "/dicomweb/workitems/{workitem}/state"),
        ("GET", "/fhir/metadata"),
        ("GET", "/fhir/DiagnosticReport"),
        ("POST", "/fhir/DiagnosticReport/_search"),
    } <= elsewhere
    assert set(operations) - elsewhere == {
        ("GET", "/studies"),
        ("GET", "/studies/{uid}"),
        ("GET", "/studies/{uid}/score"),
        ("GET", "/studies/{uid}/ledger"),
        ("GET", "/studies/{uid}/artifacts/{kind}"),
        ("GET", "/studies/{uid}/slices.json"),
        ("GET", "/studies/{uid}/slices/{number}.png"),
        ("GET", "/studies/{uid}/slices/{number}/overlay.png"),
        ("GET", "/studies/{uid}/trend.json"),
        ("GET", "/jobs"),
        ("POST", "/jobs/{job_id}/retry"),
        ("POST", "/jobs/{job_id}/withdraw"),
        ("POST", "/deliveries/{delivery_id}/retry"),
        ("GET", "/worklist"),
        ("GET", "/audit"),
        ("GET", "/healthz"),
        ("GET", "/readyz"),
        ("GET", "/metrics"),
    }
    score = operations["GET", "/studies/{uid}/score"]["responses"]
    assert set(score) == {"200", "202", "401", "403", "404", "422", "429", "503"}
    for operation in operations.values():
        for status, response in operation["responses"].items():
            if status >= "400":
                assert list(response["content"]) in (
                    ["application/problem+json"],
                    ["application/json"],
                    ["application/dicom+json"],
                    ["application/fhir+json"],
                )
    text = str(document)
    for name in text.split("#/components/schemas/")[1:]:
        assert name.split("'")[0] in document["components"]["schemas"]


@steps.sqlite_only
def test_says_in_one_line_that_its_port_is_taken(settings: Settings, api: httpx.Client) -> None:
    with pytest.raises(ApiError, match="HIPSCORE_HTTP_PORT") as taken:
        run_api(settings)
    assert str(settings.http_port) in str(taken.value)


def test_rows_of_other_studies_stay_out(
    settings: Settings, api: httpx.Client, tmp_path: Path
) -> None:
    one = analysed(settings, tmp_path / "1", 1)
    two = analysed(settings, tmp_path / "2", 2)
    assert one != two
    for uid in (one, two):
        assert api.get(f"/studies/{uid}/score").json()["study_instance_uid"] == uid
        jobs = {each["job"] for each in api.get(f"/studies/{uid}/ledger").json()["events"]}
        assert len(jobs - {None}) == 1
    assert steps.count(settings, Job) == 2
