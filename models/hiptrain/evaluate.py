"""Figures of a bundle on series with known truth, through the code the service runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import numpy as np

from hipscore import phantom, pipeline, scoring
from hipscore.domain import BoolArray, Channel, Findings, Hip, Masks, Segmenter, Volume
from hipscore.phantom import Burden
from hiptrain import corruptions
from hiptrain.anatomy import Anatomy, sphere_of
from hiptrain.figures import CaseFigures, HipFigures, Summary, group
from hiptrain.metrics import dice as overlap_of
from hiptrain.metrics import overlap
from hiptrain.synthesise import Options, semireal

__all__ = ["Case", "Refusal", "evaluate", "overlap_of", "robustness"]

Scene: TypeAlias = tuple[Volume, tuple[Masks, ...]]
Done: TypeAlias = Callable[[int], object]

#: the name of the uncorrupted series among the corruptions
AS_MADE = "as made"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A series with its truth, made when it is needed: many do not fit into memory."""

    name: str
    patient: str
    burden: str
    make: Callable[[], Scene]


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysed:
    """What the service makes of a volume; ``masks`` run parallel to ``located``."""

    located: tuple[Hip, ...]
    masks: tuple[Masks, ...]
    findings: Findings


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """What became of a series without hips. ``score`` is None where it was refused."""

    name: str
    kind: str
    hips: int
    reason: str | None
    score: float | None
    remarks: tuple[str, ...]

    @property
    def refused(self) -> bool:
        return self.score is None


def semireal_cases(
    anatomies: Sequence[tuple[str, Anatomy]],
    *,
    draws: int,
    seed: int,
    fat: tuple[float, float] | None = Options().fat,
) -> list[Case]:
    """Every anatomy with every burden, ``draws`` times, in its real shape.

    ``fat`` is the range of fat's signal, muscle = 1.
    """

    def make(anatomy: Anatomy, burden: Burden, key: tuple[int, ...]) -> Scene:
        options = Options(burden=burden, fat=fat)
        made = semireal(anatomy, np.random.default_rng(key), options)
        return made.volume, made.masks

    return [
        Case(
            name=f"{name}-{burden.value}-{draw}",
            patient=name,
            burden=burden.value,
            make=partial(make, anatomy, burden, (seed, number, draw, index)),
        )
        for number, (name, anatomy) in enumerate(anatomies)
        for draw in range(draws)
        for index, burden in enumerate(Burden)
    ]


def plain_cases(anatomies: Sequence[tuple[str, Anatomy]]) -> list[Case]:
    """The T1 images as they are: hips must be found in any contrast."""

    def make(anatomy: Anatomy) -> Scene:
        masks = []
        for hip, head in zip(anatomy.hips, anatomy.heads, strict=True):
            voxels = np.zeros((len(Channel), *head.shape), dtype=np.bool_)
            voxels[Channel.FEMORAL_HEAD] = head
            masks.append(Masks(side=hip.side, voxels=voxels))
        return anatomy.volume, tuple(masks)

    return [
        Case(name=f"{name}-t1", patient=name, burden="", make=partial(make, anatomy))
        for name, anatomy in anatomies
    ]


def phantom_cases(count: int, *, seed: int) -> list[Case]:
    """Phantoms of all burdens in turn."""

    def make(number: int, burden: Burden) -> Scene:
        made = phantom.synthesise(seed=number, burden=burden)
        return made.volume, made.masks

    burdens = list(Burden)
    return [
        Case(
            name=f"phantom-{seed + index}-{(burden := burdens[index % len(burdens)]).value}",
            patient=f"phantom-{seed + index}",
            burden=burden.value,
            make=partial(make, seed + index, burden),
        )
        for index in range(count)
    ]


def analyse(volume: Volume, segmenter: Segmenter) -> Analysed:
    """Locate, segment, score and remark upon a volume as the service does."""
    masks, findings = pipeline.examine(volume, segmenter)
    located = tuple(item.hip for item in findings.hips)
    return Analysed(located=located, masks=masks, findings=findings)


def evaluate(
    cases: Iterable[Case],
    segmenter: Segmenter,
    *,
    segmenting: bool = True,
    done: Done = lambda _: None,
) -> list[CaseFigures]:
    """Analyse every case and compare with its truth; ``done(1)`` is called after each.

    ``segmenting`` False measures only where hips are found.
    """
    figures = []
    for case in cases:
        volume, truth = case.make()
        figures.append(measure(case, volume, truth, segmenter, segmenting=segmenting))
        done(1)
    return figures


def measure(
    case: Case,
    volume: Volume,
    truth: Sequence[Masks],
    segmenter: Segmenter,
    *,
    segmenting: bool = True,
) -> CaseFigures:
    """Compare what the service makes of one series with its truth."""
    truth = [masks for masks in truth if masks.voxels[Channel.FEMORAL_HEAD].any()]
    whole = analyse(volume, segmenter)
    located = whole.located
    analysed = whole if segmenting else None
    partners = pair(volume, truth, located)
    figures = CaseFigures(
        name=case.name,
        patient=case.patient,
        burden=case.burden,
        hips=tuple(
            _hip(volume, masks, index, located, analysed)
            for masks, index in zip(truth, partners, strict=True)
        ),
        false_hips=len(located) - sum(index is not None for index in partners),
    )
    if analysed is None:
        return figures
    wanted = [scoring.score_hip(volume, sphere_of(item, volume.grid), item) for item in truth]
    findings = analysed.findings
    return replace(
        figures,
        score=scoring.combine(wanted).unet_score,
        found_score=findings.unet_score,
        reason=None if findings.reason is None else findings.reason.code,
        remarks=tuple(remark.code for remark in findings.quality),
    )


def pair(volume: Volume, truth: Sequence[Masks], located: Sequence[Hip]) -> list[int | None]:
    """For every true hip the index of the located one that lies in its head, or None."""
    indices: list[int | None] = []
    for masks in truth:
        real = sphere_of(masks, volume.grid)
        away = [float(np.linalg.norm(np.subtract(h.centre_mm, real.centre_mm))) for h in located]
        nearest = int(np.argmin(away)) if away else None
        near = nearest is not None and away[nearest] <= real.radius_mm
        indices.append(nearest if near else None)
    return indices


def _hip(
    volume: Volume,
    truth: Masks,
    index: int | None,
    located: Sequence[Hip],
    analysed: Analysed | None,
) -> HipFigures:
    """Compare one true hip with the located one at ``index``."""
    real = sphere_of(truth, volume.grid)
    hip = None if index is None else located[index]
    away = None if hip is None else np.linalg.norm(np.subtract(hip.centre_mm, real.centre_mm))
    figures = HipFigures(
        side=truth.side.value,
        found=hip is not None,
        side_right=None if hip is None else hip.side is truth.side,
        centre_error_mm=None if away is None else float(away),
    )
    if analysed is None:
        return figures
    found = np.zeros_like(truth.voxels) if index is None else analysed.masks[index].voxels
    scored = None if index is None else analysed.findings.hips[index]
    pairs = zip(structures_of(truth.voxels).items(), structures_of(found).values(), strict=True)
    return replace(
        figures,
        structures={
            name: overlap(own, other, volume.grid.spacing_mm) for (name, own), other in pairs
        },
        score=scoring.score_hip(volume, real, truth).unet_score,
        found_score=None if scored is None else scored.unet_score,
        reason=None if scored is None or scored.reason is None else scored.reason.code,
    )


def structures_of(voxels: BoolArray) -> dict[str, BoolArray]:
    """The structures compared, ``(Z, Y, X)`` each, of masks ``(K, Z, Y, X)``."""
    head, bme, synovitis = (voxels[channel] for channel in Channel)
    return {"head": head, "bme": bme, "synovitis": synovitis, "lesion": bme | synovitis}


def corrupted(case: Case, weak_fat: Case | None, *, seed: int) -> Iterator[tuple[str, Case]]:
    """The series as it was made, then with every corruption, by name.

    ``weak_fat`` is the same series synthesised with weakly suppressed fat.
    """
    scene = case.make()
    yield AS_MADE, replace(case, make=lambda: scene)
    for number, (name, corruption) in enumerate(corruptions.CORRUPTIONS.items()):
        rng = np.random.default_rng((seed, number, *case.name.encode()))
        yield name, replace(case, make=partial(corruption, *scene, rng))
    if weak_fat is not None:
        yield corruptions.WEAK_FAT_NAME, weak_fat


def robustness(
    cases: Sequence[Case],
    weak_fat: Sequence[Case],
    segmenter: Segmenter,
    *,
    seed: int,
    done: Done = lambda _: None,
) -> dict[str, list[CaseFigures]]:
    """Figures of every case under every corruption, by corruption.

    ``weak_fat`` runs parallel to ``cases``, or is empty.
    """
    figures: dict[str, list[CaseFigures]] = {}
    for number, case in enumerate(cases):
        weak = weak_fat[number] if weak_fat else None
        for name, other in corrupted(case, weak, seed=seed):
            figures.setdefault(name, []).extend(evaluate([other], segmenter))
        done(1)
    return figures


def refuse(
    series: Iterable[tuple[str, Volume]], segmenter: Segmenter, *, done: Done = lambda _: None
) -> list[Refusal]:
    """What becomes of series without hips, by their pixels alone.

    The service also checks the protocol in the headers before; here every volume reaches
    the networks. A name is ``KIND-NUMBER``.
    """
    found = []
    for name, volume in series:
        findings = analyse(volume, segmenter).findings
        found.append(
            Refusal(
                name=name,
                kind=name.rpartition("-")[0] or name,
                hips=len(findings.hips),
                reason=None if findings.reason is None else findings.reason.code,
                score=findings.unet_score,
                remarks=tuple(remark.code for remark in findings.quality),
            )
        )
        done(1)
    return found


def refusal_summary(items: Sequence[Refusal]) -> Summary:
    """Refused and total by kind, and the series that got a score."""
    kinds = sorted({item.kind for item in items})
    return {
        "total": len(items),
        "refused": sum(item.refused for item in items),
        "kinds": {
            kind: {
                "total": sum(item.kind == kind for item in items),
                "refused": sum(item.kind == kind and item.refused for item in items),
            }
            for kind in kinds
        },
        "scored": [
            {"name": item.name, "score": item.score, "hips": item.hips, "remarks": item.remarks}
            for item in items
            if not item.refused
        ],
    }


def report(
    groups: dict[str, list[CaseFigures]],
    *,
    about: Summary,
    robust: dict[str, list[CaseFigures]] | None = None,
    refused: Sequence[Refusal] | None = None,
) -> Summary:
    """Everything that was measured, ready for JSON."""
    return {
        **about,
        "groups": {name: group(cases) for name, cases in groups.items()},
        "corruptions": {name: group(cases) for name, cases in (robust or {}).items()},
        "refusals": None if refused is None else refusal_summary(refused),
    }
