"""What the API answers, as Pydantic models: the source of the OpenAPI document."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, Field

from hipscore.domain import ArtifactKind, Group, Side
from hipscore.lifecycle import DeliveryState, JobState, SeriesState


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


class Model(BaseModel):
    """The model bundle a result was made with."""

    id: str
    version: str
    sha256: str


class Score(BaseModel):
    """The result of one study. For research, not for clinical decisions."""

    study_instance_uid: str
    series_instance_uid: str | None
    status: Status
    reason: Remark | None
    unet_score: float | None
    hips: list[HipScore]
    model: Model | None
    quality: list[Remark]
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
    next_attempt_at: datetime | None
    seconds: dict[str, float] = Field(description="time spent per stage")
    deliveries: list[Delivery]


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


class WorklistLine(StudyLine):
    """One study on the reading worklist, with the score of each hip."""

    right: float | None
    left: float | None
    quality: list[Remark]


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
