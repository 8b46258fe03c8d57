"""A whole small hospital on this machine: Orthanc as PACS, hipscore, and the OHIF viewer.

    python scripts/viewer.py [--directory DIR] [--port 3000] [--screenshots DIR]

Two studies of one synthetic patient come into the PACS, are sent to hipscore and scored; the
addresses to open in a browser are printed.
OHIF is the prebuilt package of the npm registry; it is fetched once (50 MB). It and
Orthanc's DICOMweb are served on one port, so that a browser sees one origin.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from pydicom import dcmread
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.routing import Route

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.processes import free_port, listens  # noqa: E402
from tests.servers import ORTHANC_CONFIGURATION, Orthanc, orthanc  # noqa: E402

PACKAGE = "@ohif/app@3.13.2"
#: the viewer's web workers share memory only in a page that is isolated like this
ISOLATED = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_HOP = {"connection", "transfer-encoding", "keep-alive", "content-length"}
_PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


def fetch_viewer(directory: Path) -> Path:
    """Folder with the files of OHIF; fetched by npm where it is missing."""
    target = directory / "ohif-3.13.2"
    files = target / "package" / "dist"
    if not (files / "index.html").is_file():
        npm = shutil.which("npm")
        if npm is None:
            raise SystemExit(f"npm is missing; it fetches {PACKAGE} (apt install npm)")
        target.mkdir(parents=True, exist_ok=True)
        print(f"fetching {PACKAGE} (50 MB, once)")
        packed = subprocess.run(
            [npm, "pack", PACKAGE, "--silent", "--pack-destination", str(target)],
            check=True,
            capture_output=True,
            text=True,
        )
        archive = target / packed.stdout.split()[-1]
        with tarfile.open(archive) as tar:
            tar.extractall(target, filter="data")
        archive.unlink()
    shutil.copyfile(ROOT / "deploy" / "ohif" / "app-config.js", files / "app-config.js")
    return files


def viewer(files: Path, pacs: str) -> Starlette:
    """OHIF at / and the PACS's DICOMweb at /dicom-web, one origin."""
    client = httpx.AsyncClient(base_url=pacs, timeout=120.0, trust_env=False)

    async def to_pacs(request: Request) -> Response:
        url = httpx.URL(path=request.url.path, query=request.url.query.encode())
        headers = {
            name: value
            for name, value in request.headers.items()
            if name != "connection"  # the host stays: the PACS makes addresses from it
        }
        asked = client.build_request(
            request.method, url, headers=headers, content=await request.body()
        )
        answer = await client.send(asked, stream=True)
        passed = {name: value for name, value in answer.headers.items() if name not in _HOP}
        return StreamingResponse(
            answer.aiter_raw(),
            status_code=answer.status_code,
            headers={**passed, **ISOLATED},
            background=BackgroundTask(answer.aclose),
        )

    async def to_files(request: Request) -> Response:
        name = request.path_params["path"]
        path = (files / name).resolve()
        if not (path.is_relative_to(files) and path.is_file()):
            path = files / "index.html"  # the viewer's own addresses
        return FileResponse(path, headers=ISOLATED)

    methods = ["GET", "POST", "HEAD", "OPTIONS"]

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await client.aclose()

    return Starlette(
        routes=[
            Route("/dicom-web/{path:path}", to_pacs, methods=methods),
            Route("/{path:path}", to_files),
        ],
        lifespan=lifespan,
    )


@contextlib.contextmanager
def serving(application: Starlette, port: int) -> Iterator[str]:
    """Serve on loopback while inside; the URL."""
    config = uvicorn.Config(application, host="127.0.0.1", port=port, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise SystemExit(f"port {port} cannot be used for the viewer; choose another (--port)")
        time.sleep(0.05)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(5.0)


@contextlib.contextmanager
def pacs(directory: Path) -> Iterator[Orthanc]:
    """Run an Orthanc with DICOMweb."""
    if not _PLUGIN.is_file():
        raise SystemExit("Orthanc's DICOMweb is missing; run: make setup-system")
    directory.mkdir(parents=True, exist_ok=True)
    configuration: dict[str, Any] = {
        **ORTHANC_CONFIGURATION,
        "Plugins": [str(_PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "StudiesMetadata": "Full"},
    }
    with orthanc(directory, configuration=configuration) as running:
        yield running


@contextlib.contextmanager
def service(directory: Path, running: Orthanc, http_port: int, viewer_url: str) -> Iterator[str]:
    """Run hipscore beside this PACS, every kind of result switched on; the URL of its pages."""
    directory.mkdir(parents=True, exist_ok=True)
    dicom_port = free_port()
    rules = directory / "rules.toml"
    rules.write_text(
        "[[destination]]\n"
        'name = "pacs"\n'
        f'address = "{running.peer}"\n'
        'artifacts = ["seg", "sr", "sc", "pdf"]\n'
    )
    environment = {
        "HIPSCORE_DATA_DIR": str(directory / "data"),
        "HIPSCORE_DICOM_PORT": str(dicom_port),
        "HIPSCORE_HTTP_PORT": str(http_port),
        "HIPSCORE_RULES": str(rules),
        "HIPSCORE_QUERY_PEER": running.peer,
        "HIPSCORE_VIEWER_URL": f"{viewer_url}/viewer?StudyInstanceUIDs={{study}}",
    }
    lines = [f"{name}='{value}'\n" for name, value in environment.items()]
    (directory / "settings.env").write_text("".join(lines))
    running.add_modality("hipscore", ae_title="HIPSCORE", port=dicom_port)
    log = directory / "hipscore.log"
    command = [str(Path(sys.executable).with_name("hipscore")), "up"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=output, stderr=output
        )
    url = f"http://127.0.0.1:{http_port}"
    try:
        _wait(lambda: _answers(f"{url}/readyz"), process, log)
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60.0)
        process.kill()


def _wait(done: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 120.0
    while not done():
        if process.poll() is not None or time.monotonic() > until:
            raise SystemExit(f"hipscore did not get ready; its log is {log}")
        time.sleep(0.2)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2.0, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def patients(directory: Path, running: Orthanc, scored: Callable[[str], bool]) -> list[str]:
    """Two studies of one patient, a year apart, come into the PACS and go to be scored."""
    hipscore = str(Path(sys.executable).with_name("hipscore"))
    uids = []
    for date, burden, seed in (("2024-01-15", "severe", 7), ("2025-01-20", "mild", 7)):
        folder = directory / date
        common = ["--out", str(folder), "--seed", str(seed), "--burden", burden]
        whose = ["--patient-id", "DEMO-7", "--study-date", date]
        subprocess.run([hipscore, "phantom", *common, *whose], check=True, capture_output=True)
        for path in sorted(folder.rglob("*.dcm")):
            running.upload(path.read_bytes())
        uid = str(dcmread(next(folder.rglob("*.dcm"))).StudyInstanceUID)
        (study,) = running.find("Study", StudyInstanceUID=uid)
        print(f"study of {date} is in the PACS, which sends it to hipscore")
        running.send("hipscore", [study])
        until = time.monotonic() + 120.0
        while not scored(uid):
            if time.monotonic() > until:
                raise SystemExit(f"study {uid} was not scored within two minutes")
            time.sleep(0.3)
        uids.append(uid)
    return uids


def arrived(service_url: str, uid: str) -> bool:
    """Whether everything about the study has arrived in the PACS."""
    answer = httpx.get(f"{service_url}/studies/{uid}", timeout=10.0, trust_env=False)
    if answer.status_code != 200:
        return False
    states = [
        delivery["state"]
        for series in answer.json()["details"]
        for job in series["jobs"]
        for delivery in job["deliveries"]
    ]
    return bool(states) and set(states) <= {"SENT", "COMMITTED"}


def main() -> None:
    """Run it all until Ctrl-C, or take the pictures and end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Formatter)
    parser.add_argument("--directory", type=Path, default=Path("hipscore-viewer"))
    parser.add_argument("--port", type=int, default=3000, help="port of the viewer")
    parser.add_argument("--http-port", type=int, default=8080, help="port of hipscore's pages")
    parser.add_argument(
        "--screenshots", type=Path, metavar="DIR", help="take pictures in Chromium, then end"
    )
    chosen = parser.parse_args()
    directory = chosen.directory.resolve()
    for port, option in ((chosen.port, "--port"), (chosen.http_port, "--http-port")):
        if listens(port):
            raise SystemExit(f"port {port} is taken; choose another with {option}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # cleans up like Ctrl-C
    files = fetch_viewer(directory)
    for stale in ("pacs", "service", "studies"):
        shutil.rmtree(directory / stale, ignore_errors=True)
    with contextlib.ExitStack() as stack:
        running = stack.enter_context(pacs(directory / "pacs"))
        shown = stack.enter_context(serving(viewer(files, running.url), chosen.port))
        ours = stack.enter_context(service(directory / "service", running, chosen.http_port, shown))
        uids = patients(directory / "studies", running, lambda uid: arrived(ours, uid))
        print(f"\nworklist and pages  {ours}/")
        for uid in uids:
            print(f"study               {ours}/studies/{uid}/view")
            print(f"in OHIF             {shown}/viewer?StudyInstanceUIDs={uid}")
        print("\nto try hipscore doctor, why, jobs and rules on it:")
        print(f"  set -a; . {directory / 'service' / 'settings.env'}; set +a")
        print("\nFor research, not for clinical decisions.")
        if chosen.screenshots is not None:
            from tests.viewers.ohif import pictures  # noqa: PLC0415 - needs Playwright

            pictures(shown, uids[-1], chosen.screenshots.absolute())
            return
        print("Ctrl-C ends everything.")
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


class _Formatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    pass


if __name__ == "__main__":
    main()
