"""STOW-RS both ways: images come in by it with the promises of C-STORE, results go out by it."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian, SecondaryCaptureImageStorage

from hipscore import routing, stow, worker
from hipscore.addresses import DicomWeb
from hipscore.domain import ArtifactKind
from hipscore.lifecycle import CloseReason, DeliveryState, SeriesState
from hipscore.settings import Settings
from hipscore.spool import Spool
from hipscore.store.tables import Delivery, Event, Instance, Job, Series
from tests import servers
from tests.dicomweb import body, content_type, dicomweb
from tests.integration import kinds_steps as kinds
from tests.integration import shell_steps as steps
from tests.integration import store_steps
from tests.integration.delivery_steps import artifacts, wake
from tests.serving import serving

# --- images come in ----------------------------------------------------------------------


@pytest.fixture
def base(settings: Settings) -> Iterator[str]:
    with serving(settings) as url:
        yield url


def encoded(dataset: Dataset) -> bytes:
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def store(base: str, objects: Sequence[bytes], study: str = "", **headers: str) -> httpx.Response:
    path = f"/dicomweb/studies/{study}" if study else "/dicomweb/studies"
    given = {"Content-Type": content_type(), **headers}
    return httpx.post(
        base + path, content=body(objects), headers=given, trust_env=False, timeout=60.0
    )


def answer(response: httpx.Response, status: int) -> Dataset:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/dicom+json"
    return Dataset.from_json(response.json())


def matched(settings: Settings, count: int = 1) -> None:
    """Wait for what follows from an answer."""
    servers.wait_until(
        lambda: (
            [each.state for each in steps.rows(settings, Series)] == [SeriesState.MATCHED] * count
        ),
        what="the series are matched",
    )


def named(dataset: Dataset, sequence: str) -> list[str]:
    return [str(item.ReferencedSOPInstanceUID) for item in dataset.get(sequence, [])]


def test_a_series_that_came_whole_is_kept_closed_and_queued(base: str, settings: Settings) -> None:
    images = steps.images()
    said = answer(store(base, [encoded(each) for each in images]), 200)
    assert named(said, "ReferencedSOPSequence") == [str(each.SOPInstanceUID) for each in images]
    assert "FailedSOPSequence" not in said
    servers.wait_until(lambda: len(steps.queued(settings, "analysis")) == 1, what="it is queued")
    (series,) = steps.rows(settings, Series)
    assert series.state is SeriesState.MATCHED
    assert series.close_reason == CloseReason.EXPECTED_COUNT
    assert series.calling_aet == "STOW-RS"
    (job,) = steps.rows(settings, Job)
    assert job.series_id == series.id
    spool = Spool(settings.data_dir / "spool")
    for row in steps.rows(settings, Instance):
        kept = dcmread(BytesIO(spool.read(row.spool_key, row.sha256)))
        assert kept.SOPInstanceUID == row.sop_instance_uid


def test_a_request_with_a_part_of_a_series_proves_nothing(base: str, settings: Settings) -> None:
    images = steps.unannounced(steps.images())
    answer(store(base, [encoded(each) for each in images[:10]]), 200)
    answer(store(base, [encoded(each) for each in images[10:]]), 200)
    (series,) = steps.rows(settings, Series)
    assert series.state is SeriesState.RECEIVING  # the quiet period decides
    assert steps.count(settings, Instance) == len(images)


def test_the_same_image_by_c_store_and_by_stow_is_one_image(
    base: str, settings: Settings, tmp_path: Path
) -> None:
    images = steps.images()
    with steps.listening(settings) as port:
        sent = steps.storescu(port, steps.save(images, tmp_path / "images"))
        assert set(steps.statuses(sent)) == {"Success"}
    for image in images:  # somebody else's file meta information
        image.file_meta.ImplementationVersionName = "SOMEBODY"
        image.file_meta.SourceApplicationEntityTitle = "ELSE"
    said = answer(store(base, [encoded(each) for each in images]), 200)
    assert len(named(said, "ReferencedSOPSequence")) == len(images)
    assert steps.count(settings, Instance) == len(images)
    assert steps.count(settings, Job) == 1
    assert "conflict" not in {event.what for event in steps.rows(settings, Event)}


@steps.sqlite_only
def test_the_same_uid_with_other_content_is_told_and_the_first_is_kept(
    base: str, settings: Settings
) -> None:
    image = steps.images()[0]
    answer(store(base, [encoded(image)]), 200)
    first = steps.rows(settings, Instance)[0].sha256
    image.PatientComments = "other"
    said = answer(store(base, [encoded(image)]), 202)
    assert said.ReferencedSOPSequence[0].WarningReason == 0xB000
    assert steps.rows(settings, Instance)[0].sha256 == first


@steps.sqlite_only
def test_each_object_that_is_not_kept_has_its_reason(base: str, settings: Settings) -> None:
    good, other, deflated = (encoded(each) for each in steps.images()[:3])
    capture = steps.images()[3]
    capture.SOPClassUID = SecondaryCaptureImageStorage
    capture.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    syntax = deflated.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.99")[:2000]
    liar = other.replace(b"1.2.840.10008.5.1.4.1.1.4\0", b"1.2.840.10008.5.1.4.1.1.4.1"[:26], 1)
    said = answer(store(base, [good, encoded(capture), syntax, b"no DICOM", liar]), 202)
    assert len(said.ReferencedSOPSequence) == 1
    reasons = [item.FailureReason for item in said.FailedSOPSequence]
    assert reasons[:2] == [0x0122, 0xC122]
    assert [item.FailureReason for item in said.OtherFailuresSequence][:1] == [0xC210]
    assert steps.count(settings, Instance) == 1


@steps.sqlite_only
def test_an_object_of_another_study_than_the_path_is_not_kept(
    base: str, settings: Settings
) -> None:
    image = steps.images()[0]
    said = answer(store(base, [encoded(image)], study="1.2.3"), 409)
    assert [item.FailureReason for item in said.FailedSOPSequence] == [0xC211]
    assert steps.count(settings, Instance) == 0
    answer(store(base, [encoded(image)], study=str(image.StudyInstanceUID)), 200)


@steps.sqlite_only
@pytest.mark.parametrize(
    ("content", "kind", "status"),
    (
        (b"", content_type(), 400),
        (b"--edge--\r\n", content_type(), 400),
        (b"something else", content_type(), 400),
        (b"--edge\r\nContent-Type: application/dicom\r\n\r\nno end", content_type(), 400),
        (b"--edge--", 'multipart/related; type="application/dicom"', 400),
        (b"--edge--", content_type("e" * 71), 400),
        (b"{}", "application/json", 415),
        (b"--edge--", 'multipart/related; type="application/dicom+json"; boundary=edge', 415),
        (b"--edge--", "multipart/form-data; boundary=edge", 415),
        (b"x", "", 415),
    ),
)
def test_a_body_of_another_kind_or_form_is_refused(
    base: str, content: bytes, kind: str, status: int
) -> None:
    response = httpx.post(
        f"{base}/dicomweb/studies",
        content=content,
        headers={"Content-Type": kind},
        trust_env=False,
    )
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"


@steps.sqlite_only
def test_an_answer_nobody_can_read_is_not_worth_storing_for(base: str, settings: Settings) -> None:
    image = encoded(steps.images()[0])
    assert store(base, [image], Accept="application/dicom+xml").status_code == 406
    assert store(base, [image], **{"Content-Encoding": "gzip"}).status_code == 415
    assert steps.count(settings, Instance) == 0
    assert store(base, [image], Accept="application/dicom+xml, */*;q=0.1").status_code == 200


def test_a_request_that_breaks_off_in_an_object_keeps_the_whole_ones_and_nothing_half(
    base: str, settings: Settings
) -> None:
    images = steps.images()
    whole = body([encoded(each) for each in images])
    cut = whole[: len(whole) // 2]
    with socket.create_connection((servers.LOOPBACK, settings.http_port)) as connection:
        connection.sendall(
            b"POST /dicomweb/studies HTTP/1.1\r\nHost: localhost\r\n"
            + f"Content-Type: {content_type()}\r\nContent-Length: {len(whole)}\r\n\r\n".encode()
            + cut
        )
        expected = len(images) // 2 - 1
        servers.wait_until(
            lambda: steps.count(settings, Instance) >= expected, what="half of them are kept"
        )
    servers.wait_until(
        lambda: any(event.what == "abort" for event in steps.rows(settings, Event)),
        what="the ledger tells of it",
    )
    kept = steps.rows(settings, Instance)
    assert len(kept) < len(images)
    spool = Spool(settings.data_dir / "spool")
    originals = {str(each.SOPInstanceUID): each for each in images}
    for row in kept:
        data = spool.read(row.spool_key, row.sha256)
        assert dcmread(BytesIO(data)).PixelData == originals[row.sop_instance_uid].PixelData
    (series,) = steps.rows(settings, Series)
    assert series.state is SeriesState.RECEIVING
    # the sender sends all of it again
    answer(store(base, [encoded(each) for each in images]), 200)
    matched(settings)
    assert steps.count(settings, Instance) == len(images)


@steps.sqlite_only
def test_a_body_that_arrives_byte_by_byte_is_understood(base: str, settings: Settings) -> None:
    image = encoded(steps.images()[0])
    whole = body([image, image])
    edges = [whole.index(b"\r\n--edge", 10) + at for at in range(12)]

    def drip() -> Iterator[bytes]:
        begin = 0
        for end in [*edges, len(whole)]:
            yield whole[begin:end]
            begin = end

    response = httpx.post(
        f"{base}/dicomweb/studies",
        content=drip(),
        headers={"Content-Type": content_type()},
        trust_env=False,
    )
    assert len(answer(response, 200).ReferencedSOPSequence) == 2
    assert steps.count(settings, Instance) == 1


@steps.sqlite_only
def test_a_sender_that_falls_silent_is_told_and_holds_nothing(settings: Settings) -> None:
    quick = settings.model_copy(update={"idle_seconds": 0.5})
    with serving(quick):
        connection = http.client.HTTPConnection(servers.LOOPBACK, quick.http_port, timeout=20)
        connection.putrequest("POST", "/dicomweb/studies")
        connection.putheader("Content-Type", content_type())
        connection.putheader("Content-Length", "1000000")
        connection.endheaders(b"--edge\r\n")
        assert connection.getresponse().status == 408
        connection.close()


@steps.sqlite_only
def test_an_object_beyond_the_limit_is_not_held_and_the_others_are_kept(
    settings: Settings,
) -> None:
    images = steps.images()[:2]
    images[1].add_new(0x7FE10010, "OB", bytes(2 * 1024 * 1024))
    with serving(settings.model_copy(update={"max_object_mb": 1})) as base:
        said = answer(store(base, [encoded(each) for each in images]), 202)
    assert named(said, "ReferencedSOPSequence") == [str(images[0].SOPInstanceUID)]
    assert named(said, "FailedSOPSequence") == [str(images[1].SOPInstanceUID)]
    assert said.FailedSOPSequence[0].FailureReason == 0xA700


@steps.sqlite_only
def test_without_room_all_of_it_is_to_come_again(settings: Settings) -> None:
    with serving(settings.model_copy(update={"reserve_mb": 10**9})) as base:
        response = store(base, [encoded(each) for each in steps.images()])
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) > 0
    assert response.headers["content-type"] == "application/problem+json"
    assert steps.count(settings, Instance) == 0


@steps.sqlite_only
def test_more_requests_than_associations_are_served_at_once_wait(settings: Settings) -> None:
    image = encoded(steps.images()[0])
    with serving(settings.model_copy(update={"max_associations": 1})) as base:
        with socket.create_connection((servers.LOOPBACK, settings.http_port)) as slow:
            slow.sendall(
                b"POST /dicomweb/studies HTTP/1.1\r\nHost: localhost\r\n"
                + f"Content-Type: {content_type()}\r\nContent-Length: 99\r\n\r\n--edge".encode()
            )
            servers.wait_until(
                lambda: store(base, [image]).status_code == 503, what="the place is taken"
            )
        servers.wait_until(
            lambda: store(base, [image]).status_code == 200, what="the place is free again"
        )


def test_many_requests_at_once_lose_nothing(base: str, settings: Settings) -> None:
    studies = [steps.images(seed) for seed in (1, 2, 3, 4)]
    said: list[httpx.Response] = []

    def send(images: list[Dataset]) -> None:
        said.append(store(base, [encoded(each) for each in images]))

    threads = [threading.Thread(target=send, args=(images,)) for images in studies * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [each.status_code for each in said] == [200] * 8
    assert steps.count(settings, Instance) == sum(map(len, studies))
    matched(settings, len(studies))
    assert steps.count(settings, Job) == len(studies)


@steps.sqlite_only
def test_every_route_is_described(base: str) -> None:
    paths = httpx.get(f"{base}/openapi.json", trust_env=False).json()["paths"]
    for path in ("/dicomweb/studies", "/dicomweb/studies/{uid}"):
        described = paths[path]["post"]
        assert "multipart/related" in described["requestBody"]["content"]
        assert {"200", "202", "400", "406", "408", "409", "415", "503"} <= set(
            described["responses"]
        )
        assert "application/dicom+json" in described["responses"]["409"]["content"]


@steps.sqlite_only
def test_curl_stores_an_image_in_implicit_vr(base: str, settings: Settings, tmp_path: Path) -> None:
    image = steps.images()[0]
    image.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    file = BytesIO()
    image.save_as(file, implicit_vr=True, little_endian=True, enforce_file_format=True)
    path = tmp_path / "body"
    path.write_bytes(body([file.getvalue()]))
    command = ["curl", "--silent", "--fail", "--noproxy", "*", "--header"]
    command += [f"Content-Type: {content_type()}", "--data-binary", f"@{path}"]
    command += [f"{base}/dicomweb/studies"]
    done = subprocess.run(command, capture_output=True, check=True)
    assert json.loads(done.stdout)["00081199"]["Value"]
    assert steps.rows(settings, Instance)[0].transfer_syntax_uid == ImplicitVRLittleEndian


# --- results go out ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[servers.Orthanc, str]]:
    with dicomweb(tmp_path_factory.mktemp("dicomweb")) as running:
        yield running


def test_orthanc_has_seg_and_sr_byte_for_byte(
    settings: Settings, web: tuple[servers.Orthanc, str]
) -> None:
    orthanc, url = web
    orthanc.clear()
    with kinds.scored(kinds.going_to(settings, url)) as at:
        done = kinds.deliver_all(at)
        assert [row.state for row in done] == [DeliveryState.SENT] * 2
        assert [row.status for row in done] == [200] * 2
        assert [row.commit_at for row in done] == [None] * 2  # all there is to be had
        made = artifacts(settings)
        arrived = {
            hashlib.sha256(steps.data_set(orthanc.file(each))).hexdigest()
            for each in orthanc.find("Instance")
        }
        assert arrived == {
            hashlib.sha256(steps.data_set(made[kind])).hexdigest()
            for kind in (ArtifactKind.SEG, ArtifactKind.SR)
        }
        again = stow.send(DicomWeb.parse(url), made[ArtifactKind.SR])  # it has it already
        assert again.delivered
    sent = [event.detail for event in steps.rows(settings, Event) if event.what == "sent"]
    assert [each["status"] for each in sent] == ["HTTP 200"] * 2


def test_a_service_that_is_down_is_served_when_it_is_back(
    settings: Settings, tmp_path: Path
) -> None:
    with dicomweb(tmp_path) as (orthanc, url):
        orthanc.process.kill()
        with kinds.scored(kinds.going_to(settings, url), jobs=2) as at:
            waiting = kinds.deliver_all(at)
            assert {row.state for row in waiting} == {DeliveryState.PENDING}
            # one finds out for all
            assert [row.attempts for row in waiting] == [1, 0, 0, 0]
            assert "cannot be reached: Connection refused" in (waiting[0].error or "")
            orthanc.process.start()
            wake(at, waiting[0].id)
            kinds.deliver_all(at)
            done = kinds.deliver_all(at)
        assert {row.state for row in done} == {DeliveryState.SENT}
        assert len(orthanc.find("Instance")) == 2  # both jobs carry the same objects


Script = Callable[[BaseHTTPRequestHandler, str], None]


@contextlib.contextmanager
def scripted(
    script: Script, context: ssl.SSLContext | None = None
) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A service that answers as it is told; its base URL, and the headers of each request."""
    seen: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append({name.lower(): value for name, value in self.headers.items()})
            data = self.rfile.read(int(self.headers["Content-Length"]))
            part = data.split(b"\r\n\r\n", 1)[1].rsplit(b"\r\n--", 1)[0]
            uid = str(dcmread(BytesIO(part), stop_before_pixels=True).SOPInstanceUID)
            with contextlib.suppress(OSError):
                script(self, uid)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer((servers.LOOPBACK, 0), Handler)
    server.daemon_threads = True
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    scheme = "http" if context is None else "https"
    try:
        yield f"{scheme}://{servers.LOOPBACK}:{server.server_address[1]}/web", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def says(status: int, content: bytes = b"", kind: str = "application/dicom+json") -> Script:
    def script(handler: BaseHTTPRequestHandler, uid: str) -> None:
        data = content.replace(b"UID", uid.encode())
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    return script


def failed(reason: int) -> bytes:
    item = {"00081155": {"vr": "UI", "Value": ["UID"]}, "00081197": {"Value": [reason]}}
    return json.dumps({"00081198": {"vr": "SQ", "Value": [item]}}).encode()


KEPT = b'{"00081199": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": ["UID"]}}]}}'
OTHER = KEPT.replace(b"UID", b"1.2.3")


@pytest.mark.parametrize(
    ("script", "delivered", "retry", "unreachable", "words"),
    (
        (says(200, KEPT), True, False, False, "accepted"),
        (says(202, KEPT), True, False, False, "accepted"),
        (says(200), False, True, False, "without naming the object"),
        (says(200, OTHER), False, True, False, "without naming the object"),
        (says(200, b"<xml/>", "application/dicom+xml"), False, True, False, "without naming"),
        (says(200, b"[[], 7, null]"), False, True, False, "without naming"),
        (says(409, failed(0x0111)), True, False, False, "has it already"),
        (says(202, failed(0xA700)), False, True, False, "out of resources"),
        (says(409, failed(0x0110)), False, True, False, "processing failure"),
        (says(409, failed(0x0122)), False, False, False, "SOP class not supported"),
        (says(409, failed(0xC000)), False, False, False, "refused with 0xC000"),
        (says(409), False, False, False, "refused with HTTP 409"),
        (says(400), False, False, False, "refused with HTTP 400"),
        (says(401), False, False, False, "it wants credentials"),
        (says(403), False, False, False, "may not store"),
        (says(404), False, False, False, "no STOW-RS under this URL"),
        (says(413), False, False, False, "too large"),
        (says(415), False, False, False, "takes no application/dicom"),
        (says(301), False, False, False, "redirects"),
        (says(429), False, True, False, "cannot take it now, HTTP 429"),
        (says(500), False, True, False, "cannot take it now, HTTP 500"),
        (says(501), False, False, False, "refused with HTTP 501"),
        (says(503), False, True, True, "cannot take it now, HTTP 503"),
    ),
)
def test_what_a_service_answers_is_read_by_its_meaning(
    script: Script, delivered: bool, retry: bool, unreachable: bool, words: str
) -> None:
    with scripted(script) as (url, _):
        outcome = stow.send(DicomWeb.parse(url), kinds.made()[0].data)
    assert (outcome.delivered, outcome.retry, outcome.unreachable) == (
        delivered,
        retry,
        unreachable,
    )
    assert words in outcome.text
    assert "Secret" not in outcome.text


def _silent(handler: BaseHTTPRequestHandler, uid: str) -> None:
    del uid
    handler.rfile.read(1)


def _dripping(handler: BaseHTTPRequestHandler, uid: str) -> None:
    del uid
    handler.send_response(200)
    handler.end_headers()
    for _ in range(100):
        handler.wfile.write(b" ")
        time.sleep(0.05)


def _hanging_up(handler: BaseHTTPRequestHandler, uid: str) -> None:
    del uid
    handler.connection.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("script", (_silent, _dripping))
def test_a_service_that_does_not_come_to_an_end_is_left_in_time(script: Script) -> None:
    quick = stow.Timeouts(connection=1.0, answer=0.5, whole=1.0)
    with scripted(script) as (url, _):
        began = time.monotonic()
        outcome = stow.send(DicomWeb.parse(url), kinds.made()[0].data, timeouts=quick)
        assert time.monotonic() - began < 3.0
    assert outcome.retry
    assert outcome.silent
    assert outcome.unreachable


def test_a_service_that_hangs_up_is_asked_again_and_holds_up_nobody() -> None:
    with scripted(_hanging_up) as (url, _):
        outcome = stow.send(DicomWeb.parse(url), kinds.made()[0].data)
    assert (outcome.retry, outcome.unreachable) == (True, False)


@steps.sqlite_only
def test_a_service_that_knows_no_comprehensive_3d_sr_gets_the_other_form(
    settings: Settings,
) -> None:
    by_uid = {each.sop_instance_uid: each.kind for each in kinds.made()}

    def old(handler: BaseHTTPRequestHandler, uid: str) -> None:
        known = by_uid[uid] is not ArtifactKind.SR
        says(200 if known else 409, KEPT if known else failed(0x0122))(handler, uid)

    with scripted(old) as (url, seen), kinds.scored(kinds.going_to(settings, url)) as at:
        done = kinds.deliver_all(at)
        assert len(seen) == 3
    assert [row.state for row in done] == [DeliveryState.SENT] * 2
    sent = [event.detail for event in steps.rows(settings, Event) if event.what == "sent"]
    assert [each["artifact"] for each in sent] == ["seg", "sr_comprehensive"]


@steps.sqlite_only
def test_credentials_come_from_their_file_and_are_shown_nowhere(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secret = tmp_path / "authorization"
    with scripted(says(401)) as (url, seen):
        receiver = routing.Receiver(address=url, authorization_file=str(secret))
        with kinds.scored(kinds.going_to(settings, url), receiver) as at:
            waiting = kinds.deliver_all(at)
            assert seen == []
            assert {row.state for row in waiting} == {DeliveryState.PENDING}
            assert "authorization_file" in (waiting[0].error or "")
            secret.write_text("Bearer hush-hush\n")
            for row in waiting:
                wake(at, row.id)
            done = kinds.deliver_all(at)
    assert [each["authorization"] for each in seen] == ["Bearer hush-hush"] * 2
    assert {row.state for row in done} == {DeliveryState.REFUSED}
    told = [str(event.detail) for event in steps.rows(settings, Event)]
    assert "hush" not in caplog.text + "".join(told) + "".join(row.error or "" for row in done)
    assert "HTTP 401" in "".join(told)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for this machine, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    chain, key = folder / "chain.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=test", "-addext", f"subjectAltName=IP:{servers.LOOPBACK}"]
    command += ["-out", str(chain), "-keyout", str(key)]
    subprocess.run(command, check=True, capture_output=True)
    return chain, key


def test_a_certificate_is_verified(
    certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with scripted(says(200, KEPT), context) as (url, seen):
        stranger = stow.send(DicomWeb.parse(url), kinds.made()[0].data)
        assert (stranger.delivered, stranger.retry, stranger.unreachable) == (False, True, True)
        assert "its certificate is not trusted" in stranger.text
        assert seen == []
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))  # the system trusts it now
        assert stow.send(DicomWeb.parse(url), kinds.made()[0].data).delivered


def test_what_is_no_dicom_file_is_not_sent() -> None:
    with pytest.raises(ValueError, match="not a DICOM file"):
        stow.send(DicomWeb.parse("http://127.0.0.1:1/web"), b"nothing")


@steps.sqlite_only
def test_several_workers_send_each_object_once(settings: Settings) -> None:
    with scripted(says(200, KEPT)) as (url, seen):
        with kinds.scored(kinds.going_to(settings, url), jobs=3) as at:
            ids = [row.id for row in kinds.deliveries(at)]
            again = ids * 3
            store_steps.at_once([partial(worker.deliver, each, at) for each in again])
            done = kinds.deliveries(at)
        assert len(seen) == len(ids)
    assert {row.state for row in done} == {DeliveryState.SENT}
    assert {row.attempts for row in done} == {1}
    assert steps.count(settings, Delivery) == len(ids)
