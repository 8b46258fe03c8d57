"""``score``: files in, results out, without database or network."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import click
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.tag import BaseTag, Tag

from hipscore import __version__
from hipscore.cli.common import files_in, load_settings, print_json, progress, start, table
from hipscore.domain import RESEARCH_USE, Artifact, ArtifactKind, Engine, Segmenter
from hipscore.header import is_uid, read_image
from hipscore.pipeline import DEFAULT_KINDS, Analysis, Options, analyse, report
from hipscore.reporting import ReportContext
from hipscore.reporting.result import result_json
from hipscore.telemetry import Stopwatch

_NAMES = {
    ArtifactKind.SEG: "seg.dcm",
    ArtifactKind.SR: "sr.dcm",
    ArtifactKind.OVERLAY: "overlay.png",
    ArtifactKind.PDF: "report.dcm",
}
#: secondary captures, one file each
_CAPTURES = "captures"
_PDF = "report.pdf"
_HEADER: list[BaseTag | int] = [
    Tag(keyword) for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "Rows")
]
_COLUMNS = (
    "series_instance_uid",
    "status",
    "reason",
    "unet_score",
    "side",
    "hip_unet_score",
    "bme_score",
    "synovitis_score",
    "slices_used",
    "femoral_head_ml",
    "bme_ml",
    "synovitis_ml",
    "effusion_mm",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """The files of one series, and the name of the folder for its results."""

    series_uid: str
    folder: str
    files: tuple[Path, ...]


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for results.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as a JSON list.")
@click.option("--csv", "csv_file", type=click.Path(path_type=Path), help="Also write a CSV file.")
@click.option("--pdf", is_flag=True, help="Also write the report as PDF (with the name).")
@click.option("--sc", is_flag=True, help="Also write pictures as secondary captures.")
@click.option("--skip-protocol-check", is_flag=True, help="Score series without fat suppression.")
@click.option("--timings", is_flag=True, help="Print the seconds of every stage.")
def score(
    paths: Sequence[Path],
    *,
    out: Path,
    as_json: bool,
    csv_file: Path | None,
    pdf: bool,
    sc: bool,
    skip_protocol_check: bool,
    timings: bool,
) -> None:
    """Score DICOM files without database or network.

    PATHS are files or folders; images are grouped by series. Each series gets a folder
    below --out with seg.dcm, sr.dcm, overlay.png and result.json; with --pdf also report.pdf
    and the same as report.dcm, with --sc also captures/000.dcm and so on. Exits 0 also when a
    series is not scorable (its report says why), 1 when nothing was found.
    """
    from hipscore.inference import BundleError
    from hipscore.keeping.networks import configured

    settings = load_settings()
    start(settings)
    found, ignored = _series_in(paths)
    if not found:
        msg = f"no DICOM image in {', '.join(map(str, paths))} ({ignored} other files)"
        raise click.ClickException(msg)
    try:
        segmenter = configured(settings)
    except BundleError as error:
        raise click.ClickException(str(error)) from error
    options = Options(
        protocol_check=not skip_protocol_check, min_head_area_mm2=settings.min_head_area_mm2
    )
    extra = {ArtifactKind.PDF: pdf, ArtifactKind.SC: sc}
    kinds = DEFAULT_KINDS | {kind for kind, wanted in extra.items() if wanted}
    results = []
    for series in progress(found, "scoring"):
        watch = Stopwatch()
        try:
            results.append(_score_one(series, out, segmenter, options, watch, kinds=kinds))
        except OSError as error:
            msg = f"results cannot be written: {error}"
            raise click.ClickException(msg) from error
        if timings:
            click.echo(f"{series.series_uid}: {watch}", err=True)
    if csv_file is not None:
        _write_csv(csv_file, results)
    if as_json:
        print_json(results)
    else:
        click.echo(_report(results, out))
    if ignored:
        click.echo(
            f"{ignored} files are not DICOM images with valid UIDs and were left out", err=True
        )


def _series_in(paths: Sequence[Path]) -> tuple[list[_Found], int]:
    """Group the files by series, in order of UID. Returns the groups and the number left out.

    The folder of a series has its UID as name; below that of the study where several studies
    have a series of this UID.
    """
    groups: dict[tuple[str, str], list[Path]] = {}
    ignored = 0
    for path in progress(files_in(paths), "reading"):
        try:
            header = dcmread(path, stop_before_pixels=True, specific_tags=_HEADER)
        except (InvalidDicomError, OSError, ValueError):
            ignored += 1
            continue
        series, study = _uid_of(header, "SeriesInstanceUID"), _uid_of(header, "StudyInstanceUID")
        if "Rows" not in header or series is None or study is None:
            ignored += 1
            continue
        groups.setdefault((series, study), []).append(path)
    studies = Counter(series for series, _ in groups)
    found = [
        _Found(
            series_uid=series,
            folder=series if studies[series] == 1 else f"{study}/{series}",
            files=tuple(items),
        )
        for (series, study), items in sorted(groups.items())
    ]
    return found, ignored


def _uid_of(header: Dataset, keyword: str) -> str | None:
    """A UID that can safely name a folder; None if the file has none or something else there."""
    if keyword not in header:
        return None
    value = header.get_item(keyword).value
    text = value if isinstance(value, str) else bytes(value or b"").decode("ascii", "replace")
    text = text.strip(" \0")
    return text if is_uid(text) else None


def _score_one(
    series: _Found,
    out: Path,
    segmenter: Segmenter,
    options: Options,
    watch: Stopwatch,
    *,
    kinds: frozenset[ArtifactKind],
) -> dict[str, Any]:
    """Score one series and write its folder. Returns its result JSON."""
    with watch.stage("read"):
        images = _without_repeats(read_image(path.read_bytes()) for path in series.files)
    analysis = analyse(images, segmenter, options=options, stage=watch.stage)
    now = datetime.now().astimezone()  # DICOM times are local (PS3.5 6.2)
    card = segmenter.card
    # not the service's key: what is made here must not pass for what the service sent
    key = f"offline/{series.series_uid}/{card.sha256}/{now.isoformat()}"
    context = ReportContext(
        job_key=key,
        created_at=now,
        software_version=__version__,
        engine=_asked(analysis, segmenter),
    )
    artifacts = report(analysis, card, context=context, kinds=kinds, stage=watch.stage)
    folder = out / series.folder
    places = _write(artifacts, folder)
    result = result_of(analysis, segmenter, created_at=now, artifacts=places)
    (folder / "result.json").write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    return result


def _asked(analysis: Analysis, segmenter: Segmenter) -> Engine | None:
    """What computed; None where the series was declined before any network was asked."""
    return None if analysis.volume is None else segmenter.engine


def _without_repeats(images: Iterator[Dataset]) -> list[Dataset]:
    """One image per SOP instance: a file that was copied counts once."""
    unique: dict[str, Dataset] = {}
    for image in images:
        unique.setdefault(str(image.get("SOPInstanceUID", id(image))), image)
    return list(unique.values())


def result_of(
    analysis: Analysis, segmenter: Segmenter, *, created_at: datetime, artifacts: dict[str, str]
) -> dict[str, Any]:
    """Make the result JSON of an analysis that no database knows."""
    first = analysis.images[0]
    return result_json(
        study_uid=str(first.get("StudyInstanceUID", "")),
        series_uid=str(first.get("SeriesInstanceUID", "")),
        status="scored" if analysis.findings.scored else "not_scorable",
        findings=analysis.findings,
        card=segmenter.card,
        engine=_asked(analysis, segmenter),
        created_at=created_at,
        supersedes=None,
        artifacts=artifacts,
    )


def _write(artifacts: Sequence[Artifact], folder: Path) -> dict[str, str]:
    folder.mkdir(parents=True, exist_ok=True)
    captures = folder / _CAPTURES
    # an earlier run may have left a SEG that this one has not
    left = [folder / name for name in (*_NAMES.values(), _PDF)]
    for path in (*left, *captures.glob("[0-9][0-9][0-9].dcm")):
        path.unlink(missing_ok=True)
    places = {}
    for artifact in artifacts:
        if artifact.kind is ArtifactKind.SC:
            captures.mkdir(exist_ok=True)
            (captures / f"{artifact.number:03d}.dcm").write_bytes(artifact.data)
            places[artifact.kind.value] = str(captures)
        if artifact.kind not in _NAMES:  # the second form of the report is for old peers
            continue
        path = folder / _NAMES[artifact.kind]
        path.write_bytes(artifact.data)
        places[artifact.kind.value] = str(path)
        if artifact.kind is ArtifactKind.PDF:
            document = dcmread(BytesIO(artifact.data))
            data = document.EncapsulatedDocument[: document.EncapsulatedDocumentLength]
            (folder / _PDF).write_bytes(data)
            places[artifact.kind.value] = str(folder / _PDF)
    return places


def _rows(results: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One row per hip, one for a series without hips."""
    for result in results:
        reason = result["reason"]
        whole = {
            "series_instance_uid": result["series_instance_uid"],
            "status": result["status"],
            "reason": reason["code"] if reason else None,
            "unet_score": result["unet_score"],
        }
        for hip in result["hips"] or [{}]:
            own = {name: hip.get(name) for name in _COLUMNS if name not in whole}
            own["hip_unet_score"] = hip.get("unet_score")
            yield {**whole, **own}


def _write_csv(path: Path, results: Sequence[dict[str, Any]]) -> None:
    try:
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, _COLUMNS)
            writer.writeheader()
            writer.writerows(_rows(results))
    except OSError as error:
        msg = f"{path} cannot be written: {error}"
        raise click.ClickException(msg) from error


def hip_table(results: Sequence[dict[str, Any]]) -> str:
    """Lay the hips of some results out as a table."""
    header = ("series", "side", "UNet-score", "BME", "synovitis", "slices", "effusion mm", "status")
    rows = [
        (
            "…" + row["series_instance_uid"][-12:],
            row["side"] or "",
            row["hip_unet_score"],
            row["bme_score"],
            row["synovitis_score"],
            row["slices_used"],
            row["effusion_mm"],
            row["reason"] or row["status"],
        )
        for row in _rows(results)
    ]
    return table(rows, header)


def _report(results: Sequence[dict[str, Any]], out: Path) -> str:
    lines = [hip_table(results), ""]
    lines += [
        f"{result['series_instance_uid']}: {result['reason']['text']}"
        for result in results
        if result["reason"]
    ]
    lines += [
        f"{result['series_instance_uid']}: quality: {remark['text']}"
        for result in results
        for remark in result["quality"]
    ]
    lines += [f"results: {out}", f"{RESEARCH_USE}."]
    return "\n".join(lines)
