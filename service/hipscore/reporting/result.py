"""The result as JSON: what the API, the command line and the store share."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, TypeAlias

from hipscore.change import Assessment, Change, HipChange
from hipscore.domain import Engine, Findings, HipFindings, ModelCard, Remark, SliceScore

Status: TypeAlias = Literal["queued", "analysing", "scored", "not_scorable", "failed"]


def result_json(
    *,
    study_uid: str,
    series_uid: str,
    status: Status,
    findings: Findings | None,
    card: ModelCard | None,
    created_at: datetime | None,
    engine: Engine | None = None,
    supersedes: str | None = None,
    artifacts: Mapping[str, str] | None = None,
    reason: Remark | None = None,
    assessment: Assessment | None = None,
) -> dict[str, Any]:
    """Build the result document; ``result.schema.json`` beside this module describes it.

    Parameters
    ----------
    study_uid, series_uid
        Which series.
    status
        ``queued`` and ``analysing`` have no findings yet, ``failed`` has none at all.
    findings, card, created_at
        What was found, by which model, when. None as long as there is nothing.
    engine
        What computed the networks; None where nothing was computed.
    supersedes
        What this result replaces.
    artifacts
        Where ``seg``, ``sr``, ``overlay``, and ``sc`` and ``pdf`` where they were made, lie.
    reason
        Why there is no score; the findings' own reason unless given.
    assessment
        What changed since an earlier score, and whether this is flagged.

    Returns
    -------
    dict
        JSON values only; numbers are not rounded.
    """
    if reason is None and findings is not None:
        reason = findings.reason
    return {
        "study_instance_uid": study_uid,
        "series_instance_uid": series_uid,
        "status": status,
        "reason": _remark(reason),
        "unet_score": findings.unet_score if findings is not None else None,
        "hips": [_hip(hip) for hip in findings.hips] if findings is not None else [],
        "model": (
            {"id": card.id, "version": card.version, "sha256": card.sha256}
            if card is not None
            else None
        ),
        "engine": (
            {name: getattr(engine, name) for name in ("provider", "precision", "runtime")}
            if engine is not None
            else None
        ),
        "quality": [_remark(item) for item in findings.quality] if findings is not None else [],
        "change": _change(assessment.change) if assessment is not None else None,
        "priority": {
            "flag": assessment is not None and assessment.priority.flag,
            "reason": assessment.priority.reason if assessment is not None else None,
        },
        "created_at": created_at.isoformat() if created_at is not None else None,
        "supersedes": supersedes,
        "artifacts": dict(artifacts or {}),
    }


def _remark(remark: Remark | None) -> dict[str, str] | None:
    return {"code": str(remark.code), "text": remark.text} if remark is not None else None


def _change(change: Change | None) -> dict[str, Any] | None:
    if change is None:
        return None
    return {
        "study_instance_uid": change.earlier.study_instance_uid,
        "sr_instance_uid": change.earlier.sr_instance_uid,
        "study_date": change.earlier.study_date or None,
        "unet_score": change.earlier.unet_score,
        "model": change.earlier.model,
        "difference": change.unet_score,
        "hips": [_hip_change(hip) for hip in change.hips],
        "comparable": change.comparable,
        "remarks": [_remark(item) for item in change.remarks],
    }


def _hip_change(hip: HipChange) -> dict[str, Any]:
    return {
        "side": hip.side.value,
        "difference": hip.unet_score,
        "mean_ratio_difference": hip.mean_ratio,
        "whole_volume_index_difference": hip.whole_volume_index,
        "slices_then": hip.slices_then,
        "slices_now": hip.slices_now,
    }


def _hip(hip: HipFindings) -> dict[str, Any]:
    return {
        "side": hip.hip.side.value,
        "status": "scored" if hip.scored else "not_scorable",
        "reason": _remark(hip.reason),
        "unet_score": hip.unet_score,
        "bme_score": hip.bme_score,
        "synovitis_score": hip.synovitis_score,
        "mean_ratio": hip.mean_ratio,
        "whole_volume_index": hip.whole_volume_index,
        "slices_used": len(hip.slices),
        "slices": [_slice(item) for item in hip.slices],
        "femoral_head_ml": hip.femoral_head_ml,
        "bme_ml": hip.bme_ml,
        "synovitis_ml": hip.synovitis_ml,
        "effusion_mm": hip.effusion_mm,
        "centre_mm": [float(value) for value in hip.hip.centre_mm],
        "radius_mm": hip.hip.radius_mm,
        "confidence": hip.hip.confidence,
    }


def _slice(item: SliceScore) -> dict[str, Any]:
    entry = {
        "sop_instance_uid": item.source.sop_instance_uid,
        "instance_number": item.source.instance_number,
        "group": item.group.value,
        "ratio": item.ratio,
        "bme_ratio": item.bme_ratio,
        "synovitis_ratio": item.synovitis_ratio,
        "head_mm2": item.head_mm2,
        "bme_mm2": item.bme_mm2,
        "synovitis_mm2": item.synovitis_mm2,
    }
    if item.source.frame_number is not None:
        entry["frame_number"] = item.source.frame_number
    return entry
