"""Which runtime computes the networks: the first in order that gives the right answer."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np

from hipscore.domain import Engine, FloatArray, ModelCard, Transient
from hipscore.inference import gpu, hardware, runtimes
from hipscore.inference.bundle import Bundle, BundleError, Precision, open_bundle

log = logging.getLogger(__name__)


class Provider(StrEnum):
    """What can run a network, first choice first."""

    TENSORRT = "tensorrt"
    CUDA = "cuda"
    OPENVINO = "openvino"
    CPU = "cpu"


#: what each is tried in, first choice first
PRECISIONS = {
    Provider.TENSORRT: (Precision.FP16, Precision.FP32),
    Provider.CUDA: (Precision.FP32,),
    Provider.OPENVINO: (Precision.INT8, Precision.BF16, Precision.FP32),
    Provider.CPU: (Precision.INT8, Precision.FP32),
}
ON_THE_CPU = frozenset({Provider.OPENVINO, Provider.CPU})


class EngineLost(BundleError, Transient):
    """At work no runtime is left; the next attempt, in another process, may find the device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A way to run the networks."""

    provider: Provider
    precision: Precision

    def __str__(self) -> str:
        return f"{self.provider.value} {self.precision.value}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What the networks may use: ``threads`` of the processor, a folder for built engines."""

    threads: int
    cache: Path | None = None


def choices(
    bundle: Bundle, provider: str = "auto", precision: str = "auto", *, installed: bool = True
) -> tuple[Choice, ...]:
    """Ways to run this bundle here, first choice first.

    Parameters
    ----------
    bundle
        Says in which precisions it was evaluated; no other is chosen.
    provider, precision
        The operator's choice, or ``auto``. What is asked for by name is tried even where the
        processor has no units for it.
    installed
        Leave out what is not installed or has no device.

    Raises
    ------
    BundleError
        If nothing is left; says why.
    """
    found = [
        Choice(provider=each, precision=one)
        for each, possible in PRECISIONS.items()
        for one in possible
        if provider in {"auto", each.value}
        and one in bundle.variants
        and (precision == one.value or (precision == "auto" and _worth_while(each, one)))
        and (not installed or _installed(each))
    ]
    if not found:
        evaluated = ", ".join(sorted(each.value for each in bundle.variants))
        msg = (
            f"nothing here runs the networks with HIPSCORE_PROVIDER={provider} and "
            f"HIPSCORE_PRECISION={precision}: the bundle was evaluated in {evaluated}, installed "
            f"are {', '.join(each.value for each in Provider if _installed(each))}"
        )
        raise BundleError(msg)
    return tuple(found)


def _worth_while(provider: Provider, precision: Precision) -> bool:
    return provider not in ON_THE_CPU or hardware.computes(precision)


def _installed(provider: Provider) -> bool:
    if provider is Provider.OPENVINO:
        return runtimes.openvino_version() is not None
    return provider is Provider.CPU or gpu.available(provider.value)


class _Running:
    """Both networks of a bundle, loaded in one way."""

    def __init__(self, bundle: Bundle, choice: Choice, room: Room) -> None:
        self._bundle, self._choice = bundle, choice
        variant = bundle.variants[choice.precision]
        self.localise = _load(variant.localiser, choice, room)
        self.segment = _load(variant.segmenter, choice, room)

    def engine(self, declined: Sequence[str]) -> Engine:
        """What this is, in words."""
        if self._choice.provider is Provider.OPENVINO:
            runtime = runtimes.openvino_version() or ""
        else:
            runtime = runtimes.onnxruntime_version()
        on_cpu = self._choice.provider in ON_THE_CPU
        return Engine(
            provider=self._choice.provider.value,
            precision=self._choice.precision.value,
            runtime=runtime,
            device=hardware.processor() if on_cpu else self.segment.device,
            declined=tuple(declined),
        )

    def deviation(self) -> float:
        """Largest difference from the bundle's reference output. Also warms the networks."""
        largest = 0.0
        for name, network in (("localiser", self.localise), ("segmenter", self.segment)):
            reference = self._bundle.reference(name, self._choice.precision)
            answer = network(reference.input)
            largest = max(largest, float(np.abs(answer - reference.output).max()))
        return largest

    def checked(self) -> float:
        """The deviation.

        Raises
        ------
        BundleError
            If it is larger than the bundle accepts.
        """
        deviation = self.deviation()
        accepted = self._bundle.variants[self._choice.precision].tolerance
        if not deviation <= accepted:  # not a number is a deviation too
            msg = (
                f"{self._choice} deviates from the bundle's reference by {deviation:.4f}, "
                f"at most {accepted:g} is accepted"
            )
            raise BundleError(msg)
        return deviation


def _load(path: Path, choice: Choice, room: Room) -> runtimes.Network:
    match choice.provider:
        case Provider.OPENVINO:
            return runtimes.OpenVino(path, precision=choice.precision, threads=room.threads)
        case Provider.CPU:
            return runtimes.OnnxRuntime(path, "CPUExecutionProvider", threads=room.threads)
        case Provider.CUDA | Provider.TENSORRT:
            return gpu.load(path, choice.provider.value, choice.precision, cache=room.cache)


class BundleSegmenter:
    """The networks of a bundle on the first of ``ways`` that reproduces its reference.

    When a device is lost in the middle of a series, the next way takes over, checked in the
    same manner, and computes what was asked once more.

    Raises
    ------
    BundleError
        If no way reproduces the reference.
    """

    def __init__(self, bundle: Bundle, ways: Sequence[Choice], room: Room) -> None:
        self._bundle, self._room = bundle, room
        self._ways: Iterator[Choice] = iter(ways)
        self._declined: list[str] = []
        self._lost = False
        self._failed: list[_Running] = []
        self._running = self._next()

    @property
    def card(self) -> ModelCard:
        return self._bundle.card

    @property
    def engine(self) -> Engine:
        """What computes now, and which ways were given up."""
        return self._running.engine(self._declined)

    @property
    def deviation(self) -> float:
        """Largest difference from the bundle's reference output, when it was checked."""
        return self._deviation

    @property
    def lost(self) -> bool:
        """Whether a way failed at work: this process shall end after its tasks, to start afresh.

        What CUDA says of a failed device, it says until the process ends; and what a processor
        lacked for a moment, memory, would cost the faster way for as long as the process lives.
        """
        return self._lost

    def localise(self, planes: FloatArray) -> FloatArray:
        """Head probability ``(N, 2, H, W)`` of planes ``(N, C, H, W)``."""
        return self._compute("localise", planes)

    def segment(self, crops: FloatArray) -> FloatArray:
        """Structure probability ``(N, K, H, W)`` of crops ``(N, C, H, W)``."""
        return self._compute("segment", crops)

    def _compute(self, what: str, pictures: FloatArray) -> FloatArray:
        while True:
            network: runtimes.Network = getattr(self._running, what)
            try:
                return _finite(network(pictures))
            except Exception as error:  # every runtime raises errors of its own
                if not np.isfinite(pictures).all():  # no way can answer that
                    msg = f"what shall be computed is not finite ({what})"
                    raise ValueError(msg) from error
                self._decline(f"{self._choice} failed at work", error)
                self._lost = True
                # a runtime that just failed is not taken apart: the process ends soon anyway
                self._failed.append(self._running)
                self._running = self._after_loss()

    def _after_loss(self) -> _Running:
        try:
            return self._next()
        except BundleError as error:
            raise EngineLost(str(error)) from error

    def _next(self) -> _Running:
        """The next way that works.

        Raises
        ------
        BundleError
            If none is left.
        """
        for choice in self._ways:
            try:
                running = _Running(self._bundle, choice, self._room)
                self._deviation = running.checked()
            except Exception as error:  # noqa: BLE001 - every runtime raises errors of its own
                self._decline(f"{choice} is not usable", error)
                continue
            self._choice = choice
            engine = running.engine(())
            log.info("bundle %s %s runs on %s", self.card.id, self.card.version, engine)
            return running
        msg = f"no runtime is left for the networks: {'; '.join(self._declined)}"
        raise BundleError(msg)

    def _decline(self, what: str, error: Exception) -> None:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        complaint = f"{what}: {lines[0][:200]}"
        if complaint not in self._declined:
            self._declined.append(complaint)
        log.error("%s; a slower one is tried", complaint)


def _finite(answer: FloatArray) -> FloatArray:
    """The answer; not a number would be above no threshold, and so a hip without a lesion.

    Raises
    ------
    ArithmeticError
        If a value is not finite.
    """
    if not np.isfinite(answer).all():
        raise ArithmeticError("the answer is not finite")
    return answer


def load_segmenter(
    directory: Path | None = None,
    threads: int = 0,
    *,
    provider: str = "auto",
    precision: str = "auto",
    cache: Path | None = None,
) -> BundleSegmenter:
    """Open a bundle on the best runtime that reproduces its reference.

    Parameters
    ----------
    directory
        Bundle folder; default: the shipped bundle.
    threads
        Threads of the processor; 0: one per core this process may use.
    provider
        One of :class:`Provider`, or ``auto``: the first that works.
    precision
        One of :class:`Precision`, or ``auto``: the fastest on this machine of those that the
        bundle was evaluated in.
    cache
        Folder in which TensorRT keeps the engines it built.

    Raises
    ------
    BundleError
        If the bundle is not usable, or nothing reproduces its reference.
    """
    bundle = open_bundle(directory)
    room = Room(threads=threads or hardware.cores(), cache=cache)
    return BundleSegmenter(bundle, choices(bundle, provider, precision), room)
