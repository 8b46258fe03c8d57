"""``demo``: the whole service on this machine, one synthetic study, the result beside the truth."""

from __future__ import annotations

import json
import shutil
import socket
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from pydicom import dcmread

from hipscore import pacs
from hipscore.addresses import Peer
from hipscore.cli import supervise
from hipscore.cli.common import load_settings, progress, start, table
from hipscore.cli.phantom import truth, write
from hipscore.cli.sink import sink
from hipscore.cli.up import running, warm
from hipscore.domain import RESEARCH_USE, HipFindings
from hipscore.phantom import Burden, synthesise
from hipscore.settings import Settings

_FINAL = frozenset({"scored", "not_scorable", "failed"})
_MARK = ".hipscore-demo"


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("hipscore-demo"),
    show_default=True,
    help="Folder for images, results and logs; an earlier demo there is replaced.",
)
@click.option("--seed", type=click.IntRange(0), default=7, help="Which synthetic patient.")
@click.option(
    "--burden",
    type=click.Choice([item.value for item in Burden]),
    default=Burden.MODERATE.value,
    help="How inflamed the hips are.",
)
@click.option("--timeout", type=float, default=120.0, help="Seconds to wait for the result.")
@click.option("--keep", is_flag=True, help="Stay up afterwards, until Ctrl-C.")
def demo(*, out: Path, seed: int, burden: str, timeout: float, keep: bool) -> None:
    """Score a synthetic study through the whole service.

    Starts listener, worker, beat, API, an embedded database and broker, and a small PACS
    that keeps what it gets. Sends a synthetic hip STIR study by C-STORE, waits for the
    result, and prints it beside the study's truth. Nothing leaves this machine.
    """
    out = _fresh(out)
    made = synthesise(seed=seed, burden=Burden(burden))
    files = write(made, out / "images")
    click.echo(f"synthetic study: {len(files)} images, seed {seed}, burden {burden}")
    with sink(out / "pacs") as peer, tempfile.TemporaryDirectory(prefix="hipscore-") as data:
        settings = _settings(Path(data), peer)
        start(settings.model_copy(update={"log_level": "WARNING"}))
        began = time.monotonic()
        with running(settings, log_dir=out / "logs") as supervisor:
            click.echo(f"ready for images after {time.monotonic() - began:.1f} s")
            _warm(settings, supervisor, began + timeout, out)
            click.echo(f"networks loaded after {time.monotonic() - began:.1f} s")
            result = _run(settings, files, out, timeout)
            _show(result, truth(made), out)
            if keep:
                _stay(settings)
        if result["status"] != "scored":
            raise click.exceptions.Exit(1)


def _warm(settings: Settings, supervisor: supervise.Supervisor, until: float, out: Path) -> None:
    """Wait for the workers, so that what is measured next is a service that runs."""
    while not warm(settings, supervisor):
        supervisor.check()
        if time.monotonic() > until:
            msg = f"the workers did not load their networks in time; see {out / 'logs'}"
            raise click.ClickException(msg)
        time.sleep(0.05)


def _settings(data: Path, peer: Peer) -> Settings:
    """Settings of a service of its own: the operator's are those of another, kept out of it.

    Only the model and the processors are the operator's choice here too.
    """
    defaults = {
        name: field.get_default(call_default_factory=True)
        for name, field in Settings.model_fields.items()
        if name not in {"bundle_dir", "threads"}
    }
    own = {
        "data_dir": data,
        "dicom_port": _free_port(),
        "http_port": _free_port(),
        "destinations": (peer,),
        "database_url": f"sqlite:///{data / 'hipscore.db'}",
    }
    # None would not count as given, and the operator's broker would be used
    socket_url = Settings.model_construct(data_dir=data).broker
    return load_settings(**{**defaults, **own, "broker_url": socket_url})


def _fresh(out: Path) -> Path:
    """Make the folder, replacing an earlier demo and nothing else."""
    if out.exists():
        if any(out.iterdir()) and not (out / _MARK).exists():
            msg = f"{out} holds other files; name an empty folder with --out"
            raise click.ClickException(msg)
        shutil.rmtree(out)
    for name in ("images", "pacs", "logs"):
        (out / name).mkdir(parents=True)
    (out / _MARK).touch()
    return out


def _run(settings: Settings, files: Sequence[Path], out: Path, timeout: float) -> dict[str, Any]:
    """Send the study, wait for the result and for its objects in the PACS, fetch the picture."""
    here = Peer(ae_title=settings.ae_title, host=settings.dicom_host, port=settings.dicom_port)
    sending = pacs.send_files(here, files, calling_aet="DEMO")
    for _, outcome in progress(sending, f"C-STORE to {here}", len(files)):
        if not outcome.delivered:
            msg = f"an image was not stored: {outcome.text}; see {out / 'logs'}"
            raise click.ClickException(msg)
    sent = time.monotonic()
    study = str(dcmread(files[0], specific_tags=["StudyInstanceUID"]).StudyInstanceUID)
    base = f"http://{settings.http_host}:{settings.http_port}"
    url = f"{base}/studies/{study}/score"
    result = _wait(url, sent + timeout, out)
    wanted = [kind for kind in ("seg", "sr") if kind in result["artifacts"]]
    while len(list((out / "pacs").glob("*.dcm"))) < len(wanted):
        if time.monotonic() > sent + timeout:
            msg = f"the results did not reach the PACS; see {out / 'logs'}"
            raise click.ClickException(msg)
        time.sleep(0.05)
    click.echo(f"results in the PACS {time.monotonic() - sent:.1f} s after the last image")
    while _states(f"{base}/studies/{study}") != {"COMMITTED"}:
        if time.monotonic() > sent + timeout:
            msg = f"the PACS did not commit to keep the results; see {out / 'logs'}"
            raise click.ClickException(msg)
        time.sleep(0.05)
    click.echo("the PACS has committed to keep them")
    with urllib.request.urlopen(base + result["artifacts"]["overlay"]) as response:  # noqa: S310
        (out / "overlay.png").write_bytes(response.read())
    (out / "result.json").write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    return result


def _states(url: str) -> set[str]:
    """States of the deliveries of a study."""
    with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310 - our own API
        study = json.load(response)
    jobs = (job for series in study["details"] for job in series["jobs"])
    return {each["state"] for job in jobs for each in job["deliveries"]}


def _wait(url: str, until: float, out: Path) -> dict[str, Any]:
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310 - our own API
                answer: dict[str, Any] = json.load(response)
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
        else:
            if answer["status"] in _FINAL:
                return answer
        time.sleep(0.05)
    msg = f"no result in time; see {out / 'logs'}"
    raise click.ClickException(msg)


def _show(result: dict[str, Any], true: Sequence[HipFindings], out: Path) -> None:
    """Print the result beside the truth, where everything lies, and what to try next."""
    click.echo()
    if result["status"] != "scored":
        click.echo(f"{result['status']}: {result['reason']}")
    by_side = {hip["side"]: hip for hip in result["hips"]}
    rows = []
    for known in true:
        side = known.hip.side.value
        hip = by_side.get(side, {})
        for name, key in (
            ("UNet-score", "unet_score"),
            ("BME score", "bme_score"),
            ("synovitis score", "synovitis_score"),
            ("femoral head mL", "femoral_head_ml"),
            ("BME mL", "bme_ml"),
            ("synovitis mL", "synovitis_ml"),
        ):
            rows.append((side, name, hip.get(key), getattr(known, key)))
        rows.append((side, "slices used", hip.get("slices_used"), len(known.slices)))
    total = sum(known.unet_score or 0.0 for known in true)
    rows.append(("both", "UNet-score", result["unet_score"], total))
    click.echo(table(rows, ("hip", "measure", "found", "truth")))
    click.echo()
    stored = {path.name.split("-")[0]: path for path in sorted((out / "pacs").glob("*.dcm"))}
    for name, path in (
        ("SEG", stored.get("SEG")),
        ("SR", stored.get("SR")),
        ("overlay", out / "overlay.png"),
        ("result", out / "result.json"),
        ("images", out / "images"),
        ("logs", out / "logs"),
    ):
        click.echo(f"{name:>8}  {path if path is not None else '(none: nothing was segmented)'}")
    program = _program()
    model = result["model"]
    click.echo(f"\nmodel {model['id']} {model['version']}. {RESEARCH_USE}.")
    click.echo(
        "\nnext:\n"
        "  # another patient; stays up for a look at the pages and the API\n"
        f"  {program} demo --burden severe --keep\n"
        "  # score files without a service\n"
        f"  {program} score {out / 'images'} --out results\n"
        "  # run the service with your PACS, and send it a study\n"
        f"  HIPSCORE_DESTINATIONS=PACS@10.0.0.5:104 {program} up\n"
        f"  {program} send FOLDER --to HIPSCORE@127.0.0.1:11112"
    )


def _program() -> str:
    """Name this program as it can be typed here."""
    name = Path(sys.argv[0])
    if name.name != "hipscore":
        return "hipscore"
    return str(name.relative_to(Path.cwd())) if name.is_relative_to(Path.cwd()) else str(name)


def _stay(settings: Settings) -> None:
    click.echo(
        f"\nstill up: http://{settings.http_host}:{settings.http_port}/ and "
        f"{settings.ae_title}@{settings.dicom_host}:{settings.dicom_port}; Ctrl-C ends it"
    )
    try:
        while True:
            time.sleep(1)
    except KeyboardInterrupt:
        click.echo("stopping", err=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
