"""What the API answers, as Pydantic models: the source of the OpenAPI document."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from hipscore.domain import ArtifactKind, Group, Side
from hipscore.lifecycle import DeliveryState, JobState, SeriesState
from hipscore.reporting.rejection import Why


class Status(StrEnum):
    """Where the score of a study is."""

    QUEUED = "queued"
    ANALYSING = "analysing"
    SCORED = "scored"
    NOT_SCORABLE = "not_scorable"
    FAILED = "failed"


class Remark(BaseModel):
    """A stable code with one sentence."""

    code: str
    text: str


class Slice(BaseModel):
    """One scored slice of one hip."""

    sop_instance_uid: str
    instance_number: int
    frame_number: int | None = Field(None, description="1-based; only in multi-frame objects")
    group: Group
    ratio: float
    head_mm2: float
    bme_mm2: float
    synovitis_mm2: float
    bme_ratio: float | None = Field(None, description="of it edema; absent in older results")
    synovitis_ratio: float | None = Field(None, description="of it synovitis; likewise")


class HipScore(BaseModel):
    """What was measured on one hip. Scores are null where `reason` says why."""

    side: Side = Field(description="the patient's side")
    status: Literal["scored", "not_scorable"]
    reason: Remark | None = None
    unet_score: float | None
    bme_score: float | None
    synovitis_score: float | None
    mean_ratio: float | None
    whole_volume_index: float | None = None
    slices_used: int
    slices: list[Slice]
    femoral_head_ml: float
    bme_ml: float
    synovitis_ml: float
    effusion_mm: float
    centre_mm: tuple[float, float, float] = Field(description="DICOM patient coordinates, LPS")
    radius_mm: float
    confidence: float


class HipChange(BaseModel):
    """One hip that was scored both times; differences are now minus then."""

    side: Side
    difference: float
    mean_ratio_difference: float | None
    whole_volume_index_difference: float | None
    slices_then: int
    slices_now: int


class Change(BaseModel):
    """An earlier score of the same patient; differences are now minus then."""

    study_instance_uid: str
    sr_instance_uid: str
    study_date: str | None = Field(description="YYYYMMDD")
    unet_score: float = Field(description="the earlier score")
    model: str
    difference: float | None = Field(description="null where other hips were scored")
    hips: list[HipChange]
    comparable: bool = Field(description="false where a remark speaks against comparing")
    remarks: list[Remark]


class Priority(BaseModel):
    """Whether the study is to be looked at before others, by the limits of this installation."""

    flag: bool = False
    reason: str | None = None


class Model(BaseModel):
    """The model bundle a result was made with."""

    id: str
    version: str
    sha256: str


class Engine(BaseModel):
    """What computed the networks of a result."""

    provider: str
    precision: str
    runtime: str


class Score(BaseModel):
    """The result of one study. For research, not for clinical decisions."""

    study_instance_uid: str
    series_instance_uid: str | None
    status: Status
    reason: Remark | None
    unet_score: float | None
    hips: list[HipScore]
    model: Model | None
    engine: Engine | None = Field(None, description="what computed the networks")
    quality: list[Remark]
    change: Change | None = Field(None, description="since the newest earlier score, if any")
    priority: Priority = Priority()
    created_at: datetime | None
    supersedes: str | None = Field(description="SOP Instance UID of the report this one replaces")
    artifacts: dict[ArtifactKind, str] = Field(description="path of each artifact")


class Delivery(BaseModel):
    """One artifact on its way to one destination."""

    id: int
    artifact: ArtifactKind
    destination: str
    state: DeliveryState
    attempts: int
    status: str | None = Field(description="last DIMSE status, hexadecimal")
    error: str | None
    next_attempt_at: datetime | None
    finished_at: datetime | None


class JobEngine(Engine):
    """The same, with the device, and the faster engines that were tried and not used."""

    device: str
    declined: list[str]


class Job(BaseModel):
    """The analysis of one set of images by one model bundle."""

    id: int
    study_instance_uid: str
    series_instance_uid: str
    state: JobState
    unet_score: float | None
    reason: Remark | None
    model: Model
    attempts: int
    error: str | None
    supersedes: int | None = Field(description="id of the previous job of the series")
    created_at: datetime
    finished_at: datetime | None
    withdrawn_at: datetime | None = Field(description="when an operator withdrew the result")
    next_attempt_at: datetime | None
    seconds: dict[str, float] = Field(description="time spent per stage")
    engine: JobEngine | None = Field(description="what computed the networks")
    deliveries: list[Delivery]


class Withdrawal(BaseModel):
    """Why a result is withdrawn. A code, no free text, which might name a patient."""

    model_config = ConfigDict(extra="forbid")

    reason: Why = Field(
        description="`quality`: it is wrong or useless; `safety`: it may harm; `worklist`: it "
        "stands in the wrong patient or study"
    )


class JobPage(BaseModel):
    """Jobs, newest first. `next` is the path of the next page."""

    items: list[Job]
    next: str | None


class Series(BaseModel):
    """One series of a study."""

    series_instance_uid: str
    state: SeriesState
    images: int
    close_reason: str | None
    match_rule: str | None
    calling_aet: str
    first_received_at: datetime
    last_received_at: datetime
    jobs: list[Job]


class StudyLine(BaseModel):
    """One line of the list of studies."""

    study_instance_uid: str
    status: Status | None = Field(description="null when every series was ignored")
    unet_score: float | None
    reason: Remark | None
    series: int
    images: int
    last_received_at: datetime


class StudyPage(BaseModel):
    """Studies, newest first. `next` is the path of the next page."""

    items: list[StudyLine]
    next: str | None


class Study(StudyLine):
    """One study with its series, jobs and deliveries."""

    details: list[Series]


class Event(BaseModel):
    """One line of the ledger."""

    id: int
    at: datetime
    what: str
    from_state: str | None
    to_state: str | None
    job: int | None
    delivery: int | None
    detail: dict[str, Any]


class Verdict(BaseModel):
    """What is to be said of one series now, for people: the wording may change."""

    series_instance_uid: str
    sentences: list[str] = Field(description="the most important first; times are UTC")
    what_next: list[str] = Field(description="who acts, when, and what an operator can do")


class Ledger(BaseModel):
    """Everything that happened to a study, oldest first, and what it amounts to."""

    study_instance_uid: str
    verdict: list[Verdict] = Field(description="one for each series")
    events: list[Event]


class WorklistOrder(StrEnum):
    """What comes first."""

    NEWEST = "newest"
    HIGHEST = "highest"


class Sent(StrEnum):
    """Where the results of a study are; the worst of all destinations."""

    COMMITTED = "committed"
    ARRIVED = "arrived"
    UNCONFIRMED = "unconfirmed"
    WAITING = "waiting"
    NEEDS_YOU = "needs_you"


class WorklistLine(StudyLine):
    """One study on the reading worklist, with whose it is and the score of each hip."""

    right: float | None
    left: float | None
    slices: dict[Side, int] = Field(description="slices summed, of each scored hip")
    quality: list[Remark]
    priority: Priority = Field(description="a flag: it never changes the order")
    patient_id: str
    patient_name: str = Field(description="PS3.5 6.2.1: Family^Given^…")
    birth_date: str = Field(description="YYYYMMDD or empty")
    sex: str
    study_date: str = Field(description="YYYYMMDD or empty")
    study_description: str
    accession_number: str
    sent: Sent | None = Field(
        description="`committed`: every destination has confirmed that it keeps the results; "
        "`arrived`: it has them and is not asked to; `unconfirmed`: it has them and has not "
        "confirmed it yet; `waiting`: it does not have all of them; `needs_you`: given up or "
        "refused; null: nothing is sent. Of a withdrawn result, where its retraction is"
    )


class Worklist(BaseModel):
    """Studies to read, newest or highest score first. `next` is the path of the next page."""

    items: list[WorklistLine]
    next: str | None


class Health(BaseModel):
    """That the process answers."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """Whether requests can be served, and the state of each part.

    The broker is shown but not required: without it, work waits for the reaper.
    """

    ready: bool
    checks: dict[str, str]


class Structure(BaseModel):
    """One kind of outline, and its colour in the pictures."""

    name: str
    rgb: tuple[int, int, int]


class ShownSlice(BaseModel):
    """One slice of the stack."""

    number: int = Field(description="from 1, anterior to posterior")
    sop_instance_uid: str
    frame_number: int | None
    instance_number: int
    outlined: bool = Field(description="whether anything was segmented in it")


class Stack(BaseModel):
    """The slices of a study as `/studies/{uid}/slices/{n}.png` shows them."""

    study_instance_uid: str
    job: int
    rows: int
    columns: int
    height_mm: float
    width_mm: float
    left_border: str = Field(description="the patient's side at the left border of the picture")
    right_border: str
    window_low: float = Field(description="stored value shown as black")
    window_high: float = Field(description="stored value shown as white")
    lowest: float
    highest: float
    structures: list[Structure]
    slices: list[ShownSlice]


class TrendHip(BaseModel):
    """One hip of one result."""

    unet_score: float
    slices_used: int
    mean_ratio: float | None
    whole_volume_index: float | None
    comparable: bool = Field(description="same model and slice count as in this study")


class TrendPoint(BaseModel):
    """One scored study of the patient."""

    study_instance_uid: str
    study_date: str = Field(description="YYYYMMDD or empty")
    accession_number: str
    unet_score: float
    hips: dict[Side, TrendHip]
    model: str
    source: Literal["database", "report"] = Field(
        description="our own result, or a report of ours that lies in the PACS"
    )
    comparable: bool = Field(description="same model, hips and slice counts as this study")
    remarks: list[str] = Field(description="what speaks against comparing")


class Trend(BaseModel):
    """All scored studies of the patient of a study, oldest first."""

    study_instance_uid: str
    points: list[TrendPoint]
