"""The tables and the picture of a cross-validation."""

from __future__ import annotations

import statistics as plain_statistics
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hiptrain.crossval import Plan
from hiptrain.networks import TITLES, Kind
from hiptrain.specs import SEGMENTER
from hiptrain.statistics import benjamini_hochberg, mean_sd, paired
from hiptrain.tables import Table

_NOTHING = "–"
_MEASURES = {"head": "femoral head", "lesion": "lesion"}
_VARIANTS = {False: "plain", True: "PointRend"}

Results = Sequence[Mapping[str, Any]]


def tables(plan: Plan, report: Mapping[str, Any]) -> list[Table]:
    """All tables of ``crossval.json``: networks, folds, tests, cost."""
    found = report["results"]
    made = [_networks(plan, found, _footnote(plan, report))]
    made += [_folds(plan, found, variant) for variant in plan.variants]
    if len(plan.networks) > 1:
        made.append(_tests(plan, found))
    if len(plan.variants) > 1:
        made.append(_variants(plan, found))
    made.append(_cost(plan, report["cost"]))
    return made


def fold_means(
    found: Results, network: str, measure: str, *, point_rend: bool
) -> list[float | None]:
    """Mean over the hips of each fold, in the order of the folds."""
    return [
        each["summary"][measure]
        for each in sorted(_of(found, network, point_rend=point_rend), key=lambda e: e["fold"])
    ]


def patient_means(
    found: Results, network: str, measure: str, *, point_rend: bool
) -> dict[str, float]:
    """Mean over the hips of each patient; every patient is in one test fold."""
    held: dict[str, list[float]] = {}
    for each in _of(found, network, point_rend=point_rend):
        for hip in each["hips"]:
            if hip[measure] is not None:
                held.setdefault(hip["patient"], []).append(hip[measure])
    return {patient: float(np.mean(values)) for patient, values in sorted(held.items())}


def _of(found: Results, network: str, *, point_rend: bool) -> list[Mapping[str, Any]]:
    return [e for e in found if e["network"] == network and e["point_rend"] == point_rend]


def _networks(plan: Plan, found: Results, note: str) -> Table:
    rows = []
    for network in plan.networks:
        cells = [
            _mean_sd(fold_means(found, network, measure, point_rend=variant))
            for measure in _MEASURES
            for variant in plan.variants
        ]
        false = [
            _mean_sd(fold_means(found, network, "false_lesion_mm2", point_rend=variant), 1)
            for variant in plan.variants
        ]
        rows.append((TITLES[network], *cells, *false))
    return Table(
        title="Dice of every network: mean ± SD over the folds",
        header=(
            "network",
            *(
                f"{name}, {_VARIANTS[variant]}"
                for name in (*_MEASURES.values(), "false mm²")
                for variant in plan.variants
            ),
        ),
        rows=tuple(rows),
        note=note,
    )


def _folds(plan: Plan, found: Results, variant: bool) -> Table:  # noqa: FBT001 - private
    columns = [
        fold_means(found, network, measure, point_rend=variant)
        for network in plan.networks
        for measure in _MEASURES
    ]
    rows = [
        (str(fold + 1), *(_number(column[fold]) for column in columns))
        for fold in range(plan.folds)
    ]
    rows.append(("mean ± SD", *(_mean_sd(column) for column in columns)))
    return Table(
        title=f"Dice per fold, {'with' if variant else 'without'} PointRend",
        header=(
            "fold",
            *(
                f"{TITLES[network]}: {name}"
                for network in plan.networks
                for name in _MEASURES.values()
            ),
        ),
        rows=tuple(rows),
    )


def _tests(plan: Plan, found: Results) -> Table:
    first = plan.networks[0]
    pairs = [
        ((TITLES[network], _VARIANTS[variant], name), (network, variant), (first, variant), measure)
        for network in plan.networks[1:]
        for variant in plan.variants
        for measure, name in _MEASURES.items()
    ]
    return _tested(
        f"Every network against {TITLES[first]}",
        ("network", "last layer", "structure"),
        found,
        pairs,
    )


def _variants(plan: Plan, found: Results) -> Table:
    pairs = [
        ((TITLES[network], name), (network, True), (network, False), measure)
        for network in plan.networks
        for measure, name in _MEASURES.items()
    ]
    return _tested("With against without PointRend", ("network", "structure"), found, pairs)


_Pair = tuple[tuple[str, ...], tuple[Kind, bool], tuple[Kind, bool], str]


def _tested(title: str, header: tuple[str, ...], found: Results, pairs: Sequence[_Pair]) -> Table:
    """Paired comparisons over patients; p of all rows adjusted together."""
    tested = []
    for labels, one, other, measure in pairs:
        a = patient_means(found, one[0], measure, point_rend=one[1])
        b = patient_means(found, other[0], measure, point_rend=other[1])
        both = sorted(set(a) & set(b))
        if len(both) > 1:
            tested.append((labels, paired([a[p] for p in both], [b[p] for p in both])))
    adjusted: Any = benjamini_hochberg([each.wilcoxon_p for _, each in tested]) if tested else []
    rows = tuple(
        (
            *labels,
            f"{each.difference:+.3f}",
            f"{each.t_p:.3f}",
            f"{each.wilcoxon_p:.3f}",
            f"{p:.3f}",
        )
        for (labels, each), p in zip(tested, adjusted, strict=True)
    )
    count = max((each.n for _, each in tested), default=0)
    return Table(
        title=f"{title}: paired over patients",
        header=(*header, "difference", "p (t)", "p (Wilcoxon)", "adjusted"),
        rows=rows,
        note=(
            f"Unit: the mean over the hips of a patient (at most {count}). Adjusted: Wilcoxon's p "
            "by Benjamini and Hochberg over the rows. One training per fold: the spread between "
            "random starts is not in these figures."
        ),
    )


def _cost(plan: Plan, cost: Sequence[Mapping[str, Any]]) -> Table:
    stack = cost[0]["crops"] if cost else 0
    return Table(
        title="Size and speed",
        header=("network", "last layer", "parameters", "ms per hip", "runtime"),
        rows=tuple(
            (
                TITLES[each["network"]],
                _VARIANTS[each["point_rend"]],
                f"{each['parameters'] / 1e6:.2f} M",
                f"{each['milliseconds']:.0f}",
                each["runtime"],
            )
            for each in cost
        ),
        note=(
            f"A hip is a stack of {stack} crops; processor time on one thread; width {plan.width}."
        ),
    )


def _footnote(plan: Plan, report: Mapping[str, Any]) -> str:
    series = ", ".join(f"{count} {kind}" for kind, count in report["series"].items())
    count = sum(len(fold) for fold in report["folds"])
    trunk = plan.trunk_steps()
    text = (
        f"Lesion: BME ∪ synovitis-effusion. Dice of a hip over all its crops together, mean over "
        f"the hips of a fold that have the structure; false: lesion found in hips without one, mm² "
        f"per crop. "
        f"Data: {series} series; {count} patients in {plan.folds} folds by patient, the same for "
        f"every network; phantoms only ever train. {plan.steps} steps of {plan.batch} pictures, "
        f"width {plan.width}, seed {plan.seed}, last averaged weights, nothing chosen on a test "
        f"fold. The first {trunk} steps are common to both variants; then each takes the "
        f"same {plan.steps - trunk} steps, one with point rendering as its new last layer. "
        "For research, not for clinical decisions."
    )
    if plan.coarse > 1:
        text += f" Pictures at 1/{plan.coarse} of the resolution the shipped network sees."
    if "semireal" in report["series"]:
        text += " Semi-real series: real anatomy, synthetic contrast and lesions."
    return text


def cost(plan: Plan, crops: int, done: Any = lambda _: None) -> list[dict[str, Any]]:
    """Parameters, and time of one hip, of every network and variant.

    In ONNX Runtime on one CPU thread, as the service runs it: the median of five runs after
    one to warm up, in time of the processor, so that a busy machine does not count. Time does
    not depend on the weights, so fresh ones do.
    """
    found = []
    shape = (crops, SEGMENTER.context, SEGMENTER.rows, SEGMENTER.columns)
    pictures = np.random.default_rng(0).random(shape, dtype=np.float32)
    for network in plan.networks:
        for variant in plan.variants:
            parameters, milliseconds, runtime = _timed(plan, network, pictures, point_rend=variant)
            found.append(
                {
                    "network": network,
                    "point_rend": variant,
                    "crops": crops,
                    "parameters": parameters,
                    "milliseconds": round(milliseconds, 1),
                    "runtime": runtime,
                }
            )
            done(1)
    return found


def _timed(plan: Plan, network: Kind, pictures: Any, *, point_rend: bool) -> tuple[int, float, str]:
    import onnxruntime as ort

    from hiptrain.export import write_onnx
    from hiptrain.networks import Probability, build

    # at full resolution, whatever the comparison looked at
    design = replace(plan, coarse=1).design(network, point_rend=point_rend)
    model = build(design).eval()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        with warnings.catch_warnings():
            # torch warns of its own insides
            warnings.simplefilter("ignore")
            write_onnx(Probability(model).eval(), pictures, path)
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    times = []
    for _ in range(6):
        started = time.process_time()
        session.run(None, {"pictures": pictures})
        times.append(1000 * (time.process_time() - started))
    count = sum(each.numel() for each in model.parameters())
    return count, plain_statistics.median(times[1:]), f"ONNX Runtime {ort.__version__}"


def plot(plan: Plan, found: Results, path: Path) -> None:
    """Box plots of Dice over patients: a panel a structure, a pair of boxes a network."""
    from matplotlib.figure import Figure

    colours = {False: "#8fb3d9", True: "#e3a35c"}
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    panels: Any = figure.subplots(1, len(_MEASURES))
    for panel, (measure, name) in zip(panels, _MEASURES.items(), strict=True):
        for index, variant in enumerate(plan.variants):
            values = [
                list(patient_means(found, network, measure, point_rend=variant).values())
                for network in plan.networks
            ]
            shift = (index - (len(plan.variants) - 1) / 2) * 0.36
            places = np.arange(len(values)) + shift
            panel.boxplot(
                values,
                positions=places,
                widths=0.3,
                patch_artist=True,
                showfliers=False,
                boxprops={"facecolor": colours[variant], "edgecolor": "#444444"},
                medianprops={"color": "black"},
                label=_VARIANTS[variant] if measure == "head" else None,
            )
            for place, each in zip(places, values, strict=True):
                offsets = np.linspace(-0.07, 0.07, len(each)) if len(each) > 1 else [0.0]
                panel.plot(place + np.asarray(offsets), each, ".", color="#333333", markersize=4)
        panel.set_xticks(range(len(plan.networks)), [TITLES[each] for each in plan.networks])
        panel.set_title(f"Dice, {name}")
        panel.grid(axis="y", alpha=0.3)
    panels[0].set_ylabel("mean over the hips of a patient")
    figure.legend(loc="outside lower center", ncols=len(plan.variants), frameon=False)
    figure.savefig(path, dpi=130)


def _mean_sd(values: Sequence[float | None], digits: int = 3) -> str:
    held = [value for value in values if value is not None]
    if not held:
        return _NOTHING
    mean, sd = mean_sd(held)
    return f"{mean:.{digits}f}" + (f" ± {sd:.{digits}f}" if len(held) > 1 else "")


def _number(value: float | None, digits: int = 3) -> str:
    return _NOTHING if value is None else f"{value:.{digits}f}"
