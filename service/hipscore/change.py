"""What changed since an earlier score of the same patient, and whether to read this first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from hipscore.domain import EarlierHip, EarlierScore, Findings, HipFindings, ModelCard, Remark, Side


class ChangeCode(StrEnum):
    """What speaks against comparing two scores. These strings are stable."""

    SLICE_COUNTS = "slice_counts_differ"
    OTHER_MODEL = "other_model"
    HIPS = "hips_differ"


@dataclass(frozen=True, slots=True, kw_only=True)
class HipChange:
    """What became of one hip that was scored both times: differences, now minus then.

    ``mean_ratio`` and ``whole_volume_index`` are None where the earlier report lacks them.
    """

    side: Side
    unet_score: float
    mean_ratio: float | None
    whole_volume_index: float | None
    slices_then: int
    slices_now: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """An earlier score beside the new one.

    Parameters
    ----------
    earlier
        What it is compared with.
    unet_score
        Difference of the patient's scores, now minus then; None where they are sums over
        different hips.
    hips
        The hips that were scored both times, the right one first.
    comparable
        Whether nothing below speaks against reading the differences as a change of the
        disease. The scatter of two scans of the same hip is not known and not part of this.
    remarks
        What speaks against it.
    """

    earlier: EarlierScore
    unet_score: float | None
    hips: tuple[HipChange, ...]
    comparable: bool
    remarks: tuple[Remark, ...]

    @property
    def rise(self) -> float | None:
        """Sum of the differences of the hips scored both times; None without any."""
        return sum(hip.unet_score for hip in self.hips) if self.hips else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Priority:
    """Whether a study is to be looked at before others, and one sentence why."""

    flag: bool
    reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    """What a score means beside an earlier one and beside the operator's limits."""

    change: Change | None
    priority: Priority


def model_name(card: ModelCard) -> str:
    """How a result names its model, for ``EarlierScore.model``: ``hip-unet 1.2.3``.

    It is the algorithm version of the report (TID 4019) too.
    """
    return f"{card.id} {card.version}"


def assess(
    findings: Findings,
    earlier: Sequence[EarlierScore],
    card: ModelCard,
    *,
    priority_score: float | None,
    priority_rise: float | None,
) -> Assessment:
    """Compare with the newest of the earlier scores, and flag.

    Parameters
    ----------
    findings
        The new result.
    earlier
        Earlier results of the patient, newest first.
    card
        The model of the new result.
    priority_score, priority_rise
        See :func:`flag`.
    """
    changed = change(findings, earlier[0], card) if earlier else None
    return Assessment(
        change=changed, priority=flag(findings, changed, priority_score, priority_rise)
    )


def change(findings: Findings, earlier: EarlierScore, card: ModelCard) -> Change | None:
    """Set a score beside an earlier one; None where there is no score now."""
    scored = {hip.hip.side: hip for hip in findings.hips if hip.scored}
    if findings.unet_score is None or not scored:
        return None
    both = [side for side in Side if side in scored and side in earlier.hips]
    hips = tuple(_hip(side, scored[side], earlier.hips[side]) for side in both)
    same_hips = set(scored) == set(earlier.hips)
    remarks = (
        *([] if same_hips else [_other_hips(set(scored), set(earlier.hips))]),
        *(_other_count(hip) for hip in hips if hip.slices_now != hip.slices_then),
        *([] if earlier.model == model_name(card) else [_other_model(earlier.model, card)]),
    )
    return Change(
        earlier=earlier,
        unet_score=findings.unet_score - earlier.unet_score if same_hips else None,
        hips=hips,
        comparable=not remarks,
        remarks=remarks,
    )


def flag(
    findings: Findings,
    change: Change | None,
    priority_score: float | None,
    priority_rise: float | None,
) -> Priority:
    """Whether a study is to be looked at first.

    For a score of ``priority_score`` or more, or a rise of ``priority_rise`` or more since
    the earlier score (over the hips scored both times); None: not for that. A rise counts
    under the same model only; over another number of slices it counts only if the mean ratio
    per slice rose as well.
    """
    score = findings.unet_score
    if score is not None and priority_score is not None and score >= priority_score:
        return Priority(
            flag=True,
            reason=f"UNet-score {score:.2f} is {priority_score:g} or more",
        )
    if change is None or priority_rise is None or change.rise is None:
        return Priority(flag=False, reason=None)
    if change.rise < priority_rise or not _rose(change):
        return Priority(flag=False, reason=None)
    when = _when(change.earlier.study_date)
    return Priority(
        flag=True,
        reason=f"UNet-score rose by {change.rise:.2f} since {when}, {priority_rise:g} or more",
    )


def _hip(side: Side, now: HipFindings, then: EarlierHip) -> HipChange:
    return HipChange(
        side=side,
        unet_score=(now.unet_score or 0.0) - then.unet_score,
        mean_ratio=_difference(now.mean_ratio, then.mean_ratio),
        whole_volume_index=_difference(now.whole_volume_index, then.whole_volume_index),
        slices_then=then.slices_used,
        slices_now=len(now.slices),
    )


def _difference(now: float | None, then: float | None) -> float | None:
    return None if now is None or then is None else now - then


def _rose(change: Change) -> bool:
    """Whether a higher sum is more than another model or a larger number of slices."""
    codes = {remark.code for remark in change.remarks}
    if ChangeCode.OTHER_MODEL in codes:
        return False
    if ChangeCode.SLICE_COUNTS not in codes:
        return True
    return any(hip.mean_ratio is not None and hip.mean_ratio > 0 for hip in change.hips)


def _other_hips(now: set[Side], then: set[Side]) -> Remark:
    return Remark(
        code=ChangeCode.HIPS.value,
        text=f"the earlier score is of {_named(then)}, this one of {_named(now)}: "
        "the patient's totals do not compare",
    )


def _other_count(hip: HipChange) -> Remark:
    return Remark(
        code=ChangeCode.SLICE_COUNTS.value,
        text=f"{hip.side.value} hip: {hip.slices_then} slices then, {hip.slices_now} now; "
        "sums over different counts do not compare, see the mean ratio per slice",
    )


def _other_model(then: str, card: ModelCard) -> Remark:
    return Remark(
        code=ChangeCode.OTHER_MODEL.value,
        text=f"scored by {then or 'an unknown model'} then, by {model_name(card)} now: "
        "the difference may be that of the models",
    )


def _named(sides: set[Side]) -> str:
    if len(sides) == 1:
        return f"the {next(iter(sides)).value} hip alone"
    return "both hips" if sides else "no hip"


def _when(date: str) -> str:
    return f"{date[:4]}-{date[4:6]}-{date[6:]}" if len(date) == 8 else "the earlier study"
