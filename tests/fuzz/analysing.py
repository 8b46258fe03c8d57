"""The analysis of mutated series, in a process of its own.

Run as a module it takes numbers of series from its standard input and answers each with one
line of JSON. Whatever is no score and no reason code of the service is a defect.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import resource
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

from pydicom import dcmread

from hipscore import phantom, pipeline
from hipscore.domain import Channel, FloatArray, ReasonCode
from hipscore.header import Unreadable, read_header, read_image
from hipscore.reporting import ReportContext
from hipscore.reporting.result import result_json
from tests.analytic import Oracle
from tests.fuzz.draft import Draft
from tests.fuzz.encoding import Parts
from tests.fuzz.mutants import MUTATIONS, as_file, mutant
from tests.fuzz.sources import (
    Source,
    phantom_series,
    single_sources,
    small_phantom,
)

#: no series needs it; whoever asks for more gets an error instead of this machine's memory
_ADDRESS_SPACE = 16 << 30


@dataclass(frozen=True, slots=True)
class MutatedSeries:
    """Files of one series, and what was done to them."""

    number: int
    source: str
    how: str
    files: tuple[bytes, ...] = field(repr=False)


@dataclass(frozen=True)
class Stubborn(Oracle):
    """Finds hips in anything: what it does not know it takes for the picture at that place."""

    def localise(self, planes: FloatArray) -> FloatArray:
        """Answers of the phantom it knows, by content or else by place."""
        return self._answer(super().localise(planes), list(self.heads.values()), 2)

    def segment(self, crops: FloatArray) -> FloatArray:
        """Likewise."""
        return self._answer(super().segment(crops), list(self.structures.values()), len(Channel))

    @staticmethod
    def _answer(known: FloatArray, others: Sequence[FloatArray], channels: int) -> FloatArray:
        answers = known.copy()
        for index, answer in enumerate(answers):
            other = others[index % len(others)]
            if not answer.any() and other.shape == (channels, *known.shape[2:]):
                answers[index] = other
        return answers


@cache
def segmenter() -> Stubborn:
    """The truth of the phantom that all series are made of."""
    made = small_phantom()
    oracle = Stubborn()
    oracle.learn(made, phantom.to_datasets(made))
    return oracle


# --- series ------------------------------------------------------------------------------


def drawn(number: int) -> tuple[str, str, Random]:
    """Source and kind of mutation of a series, and what its other draws come from."""
    rng = Random(f"series/{number}")
    name = rng.choice(sorted(phantom_series()))
    return name, rng.choice([*MUTATIONS, *_OF_SERIES]), rng


def series(number: int, *, real: bool = False) -> MutatedSeries:
    """The mutated series with this number."""
    name, how, rng = drawn(number)
    images = list(phantom_series()[name])
    if how in _OF_SERIES:
        files = _OF_SERIES[how](images, rng, real)
    else:
        files = _some_mutated(images, how, number, rng)
    return MutatedSeries(number, name, how, tuple(files))


def _some_mutated(images: list[Source], how: str, number: int, rng: Random) -> list[bytes]:
    """One, some or all images of a series, changed in the same way, or each in its own."""
    share = rng.choice((1 / len(images), 0.5, 1.0))
    same = rng.random() < 0.5
    files = []
    for index, image in enumerate(images):
        if index == 0 or rng.random() < share:
            # the same number: with the same draws, as where a device writes them so
            seed = number if same else number * 1000 + index
            files.append(_mutated_alike(image, images[0], how, seed) if same else
                         mutant(image, seed, how=how).file)  # fmt: skip
        else:
            files.append(_plain(image))
    return files


def _mutated_alike(image: Source, first: Source, how: str, seed: int) -> bytes:
    """Mutated with the draws that the first image gets, so that all agree."""
    draft = Draft(
        rng=Random(f"{first.name}/{seed}"), source=image, parts=image.parts(), syntax=image.syntax
    )
    MUTATIONS[how](draft)
    return as_file(draft.encoded(), draft.syntax, image.sop_class, image.sop_instance)


def _plain(image: Source) -> bytes:
    return as_file(image.data, image.syntax, image.sop_class, image.sop_instance)


def _with(image: Source, change: Callable[[Parts], None]) -> bytes:
    parts = image.parts()
    change(parts)
    return as_file(parts.encoded(), image.syntax, image.sop_class, image.sop_instance)


def _same_positions(images: list[Source], rng: Random, real: bool) -> list[bytes]:
    del real
    place = rng.choice((b"0\\0\\0", b"1\\2\\3"))
    share = rng.choice((0.2, 1.0))
    return [
        _with(image, lambda parts: _put_position(parts, place))
        if rng.random() < share
        else _plain(image)
        for image in images
    ]


def _put_position(parts: Parts, place: bytes) -> None:
    parts.put(0x00200032, b"DS", place)


def _mixed(images: list[Source], rng: Random, real: bool) -> list[bytes]:
    """Images of several codings, sizes and kinds in one series."""
    every = [*phantom_series().values()]
    files = [_plain(image) for image in images]
    for index in range(len(files)):
        if rng.random() < 0.4:
            other = rng.choice(every)
            files[index] = _joining(other[index % len(other)], images[0])
    files.append(_joining(rng.choice(single_sources(real=real)), images[0]))
    return files


def _odd_series(images: list[Source], rng: Random, real: bool) -> list[bytes]:
    """The pixels and all else of somebody's odd file in every place of a stack."""
    odd = rng.choice(single_sources(real=real))
    stack = phantom_series()["phantom ExplicitVRLittleEndian"]
    if not odd.parts().elements or len(images) == 0:
        return [_plain(odd)]
    return [_in_place_of(odd, image) for image in stack]


def _in_place_of(odd: Source, image: Source) -> bytes:
    parts, model = odd.parts(), image.parts()
    for element in model.elements:
        if element.tag >> 16 != 0x0028 and element.tag >> 16 != 0x7FE0:
            placed = parts.put(element.tag, element.vr, element.value)
            placed.items = copy.deepcopy(element.items)
    parts.put(0x00280030, b"DS", b"4\\4")
    return as_file(parts.encoded(), odd.syntax, image.sop_class, image.sop_instance)


def _joining(image: Source, first: Source) -> bytes:
    """An image that says it is of the series of another one."""
    parts, model = image.parts(), first.parts()
    for tag in (0x0020000D, 0x0020000E, 0x00200052):
        element = model.find(tag)
        if parts.elements and element is not None:
            parts.put(tag, b"UI", element.value)
    data = parts.encoded() if parts.elements else image.data
    return as_file(data, image.syntax, image.sop_class, image.sop_instance)


_Maker = Callable[[list[Source], Random, bool], list[bytes]]
_OF_SERIES: dict[str, _Maker] = {
    "series: positions twice": _same_positions,
    "series: of several kinds": _mixed,
    "series: odd file in each place": _odd_series,
}


# --- analysis ----------------------------------------------------------------------------


def kept(files: Sequence[bytes]) -> list[bytes]:
    """What the listener would keep of them, and the store would give to one job."""
    groups: dict[tuple[str, str], dict[str, bytes]] = {}
    for data in files:
        try:
            header = read_header(data)
        except Unreadable:
            continue
        key = (header.study_instance_uid, header.series_instance_uid)
        groups.setdefault(key, {}).setdefault(header.sop_instance_uid, data)
    return max((list(group.values()) for group in groups.values()), key=len, default=[])


def analysed(files: Sequence[bytes]) -> str:
    """What becomes of these files: "scored" or a reason code.

    The way of the worker: read, analyse, report, result.
    """
    images = [read_image(data) for data in files]
    headers = [read_header(data) for data in files]
    oracle = segmenter()
    when = datetime(2024, 1, 2, 12, tzinfo=UTC)
    context = ReportContext(job_key="fuzz", created_at=when, software_version="0")
    analysis = pipeline.analyse(images, oracle)
    artifacts = pipeline.report(analysis, oracle.card, context=context)
    scored = analysis.findings.scored
    result = result_json(
        study_uid=headers[0].study_instance_uid,
        series_uid=headers[0].series_instance_uid,
        status="scored" if scored else "not_scorable",
        findings=analysis.findings,
        card=oracle.card,
        created_at=when,
    )
    json.dumps(result, allow_nan=False)
    _check_reports([artifact.data for artifact in artifacts if artifact.sop_class_uid], files)
    if scored:
        return "scored"
    code = result["reason"]["code"]
    return str(ReasonCode(code).value)


def _check_reports(reports: Sequence[bytes], files: Sequence[bytes]) -> None:
    """Raise unless the reports can be read and belong to the study of the images."""
    study = Counter(read_header(data).study_instance_uid for data in files).most_common(1)[0][0]
    for data in reports:
        assert dcmread(BytesIO(data)).StudyInstanceUID == study


def outcome(number: int, *, real: bool = False) -> dict[str, Any]:
    """The fate of one series: ``outcome``, and ``defect`` where it has one."""
    made = series(number, real=real)
    said: dict[str, Any] = {"number": number, "how": made.how, "source": made.source}
    said["objects"] = len(made.files)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            files = kept(made.files)
            said["outcome"] = analysed(files) if files else "unreadable"
    except Exception as error:  # noqa: BLE001 - finding these is what it is for
        said["outcome"] = "defect"
        said["defect"] = f"{type(error).__name__}: {error}"[:300]
        said["trace"] = traceback.format_exc()
    return said


def _peak_mb() -> float:
    status = Path("/proc/self/status").read_text("ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def main() -> None:
    """Answer numbers until there are no more."""
    real = "--real" in sys.argv
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    logging.disable(logging.CRITICAL)
    # native decoders print what they do not like
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        segmenter()
        for line in sys.stdin:
            Path("/proc/self/clear_refs").write_text("5", "ascii")
            said = outcome(int(line), real=real)
            said["peak_mb"] = round(_peak_mb(), 1)
            answers.write(json.dumps(said) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
