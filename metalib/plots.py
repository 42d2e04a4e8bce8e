"""Every figure: titles that say what is shown, axes with units, a band where there is spread, one colour a method."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metalib.evaluation import winner

COLOURS = {
    "reptile": "#0072B2",
    "joint": "#E69F00",
    "finetuned": "#009E73",
    "majority": "#999999",
    "best_possible": "#000000",
    "fomaml": "#88CCEE",
    "maml": "#332288",
    "anil": "#44AA99",
    "protonet": "#882255",
    "matching": "#CC6677",
    "siamese": "#AA4499",
    "relation": "#999933",
}  # Okabe & Ito's palette, then Tol's muted one, which readers with any colour vision can tell apart
LABELS = {
    "reptile": "Reptile",
    "joint": "joint training",
    "finetuned": "no meta-training",
    "majority": "majority class",
    "best_possible": "best possible",
    "fomaml": "FOMAML",
    "maml": "MAML",
    "anil": "ANIL",
    "protonet": "Prototypical",
    "matching": "Matching",
    "siamese": "Siamese",
    "relation": "Relation",
}
UNTRAINED = "untrained_"
SCORE = "balanced accuracy [%]"


def label(method: str) -> str:
    """A method's name for readers."""
    if method.startswith(UNTRAINED):
        return f"untrained {label(method.removeprefix(UNTRAINED))}"
    return LABELS.get(method, method)


def band(axes: Axes, x: Sequence[float], points: Sequence[dict[str, Any]], method: str, **style: Any) -> None:
    """A line through the means of `points` (`{"mean", "ci95"}`, fractions) in percent, with its 95% band."""
    colour = COLOURS.get(method)
    (line,) = axes.plot(x, [100 * point["mean"] for point in points], color=colour, marker="o", markersize=3, **style)
    edges = [point["ci95"] if point["ci95"][0] is not None else [np.nan, np.nan] for point in points]
    low, high = 100 * np.asarray(edges, dtype=float).T
    axes.fill_between(x, low, high, color=line.get_color(), alpha=0.15, linewidth=0)


def running_mean(values: Sequence[float], width: int) -> np.ndarray:
    """Mean over the last `width` values, fewer at the start; same length."""
    sums = np.cumsum(np.insert(np.asarray(values, dtype=float), 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - width, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def learning_curve(metrics: dict[str, list[dict[str, Any]]]) -> Figure:
    """Validation accuracy and training loss against review passes, from the lines of each learner's metrics.jsonl."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for method, lines in metrics.items():
        scored = [line for line in lines if "validation" in line]
        passes = [line["review_passes"] / 1000 for line in scored]
        for when, dashes in (("after", "-"), ("before", ":")) if scored and len(lines) > 1 else ():
            points = [line["validation"][when] for line in scored]
            band(left, passes, points, method, linestyle=dashes, label=f"{label(method)}, {when} adapting")
        steps = [line for line in lines if "first_loss" in line]
        if steps:
            x = [line["review_passes"] / 1000 for line in steps]
            width = max(1, len(steps) // 30)
            inner = any(line["first_loss"] != line["last_loss"] for line in steps)  # else a single step per task
            for key, dashes, words in (
                ("last_loss", "-", ", last inner step"),
                ("first_loss", ":", ", first inner step"),
            ):
                if inner or key == "last_loss":
                    smooth = running_mean([line[key] for line in steps], width)
                    words = label(method) + (words if inner else "")
                    right.plot(x, smooth, dashes, color=COLOURS.get(method), label=words)
    left.set(
        title="Held-out validation domains: before and after a few steps",
        xlabel="training reviews seen [thousands of passes]",
        ylabel=SCORE,
    )
    right.set(
        title="Loss on training tasks",
        xlabel="training reviews seen [thousands of passes]",
        ylabel="loss [nats]",
    )
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    return figure


def accuracy_curve(curves: dict[str, dict[str, Any]], x: str, queries: int) -> Figure:
    """Balanced accuracy on the test domains against `steps` of adaptation or `shots`."""
    figure, axes = plt.subplots(figsize=(6.5, 4), layout="constrained")
    for method, points in curves.items():
        band(axes, points[x], points["balanced_accuracy"], method, label=label(method))
    titles = {
        "steps": "Learning a new domain, step by step",
        "shots": "Learning a new domain from more and more reviews",
    }
    axes.set(
        title=titles[x],
        xlabel={"steps": "gradient steps on the support set", "shots": "labelled reviews per class (shots)"}[x],
        ylabel=SCORE,
    )
    axes.set_xscale("symlog" if x == "steps" else "log")
    ticks = sorted({mark for points in curves.values() for mark in points[x]})
    axes.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    axes.annotate(
        f"{queries} queries per class; bands: 95% intervals",
        (0.01, 0.01),
        xycoords="axes fraction",
        fontsize=7,
    )
    return figure


def domain_scores(methods: dict[str, dict[str, Any]], metric: str = "balanced_accuracy") -> Figure:
    """Each method's score on each test domain with its 95% interval."""
    domains = list(next(iter(methods.values()))["domains"])
    figure, axes = plt.subplots(figsize=(1.5 + 2.2 * len(domains), 4), layout="constrained")
    width = 0.8 / len(methods)
    for place, (method, entry) in enumerate(methods.items()):
        x = np.arange(len(domains)) + (place - (len(methods) - 1) / 2) * width
        points = [entry["domains"][domain][metric] for domain in domains]
        means = np.asarray([100 * point["mean"] for point in points])
        edges = [point["ci95"] if point["ci95"][0] is not None else [np.nan] * 2 for point in points]
        errors = np.abs(100 * np.asarray(edges, dtype=float).T - means)
        axes.bar(x, means, width * 0.9, yerr=errors, capsize=2, color=COLOURS.get(method), label=label(method))
    axes.set_xticks(range(len(domains)), domains, parse_math=False)
    axes.set(title="Each test domain", ylabel=f"{metric.replace('_', ' ')} [%]", ylim=(0, 105))
    axes.grid(alpha=0.3, axis="y")
    figure.legend(fontsize=8, loc="outside lower center", ncols=len(methods))
    return figure


def phase_diagram(cells: Sequence[dict[str, Any]], axes: Sequence[str]) -> Figure:
    """Over two settings, a panel for each number of shots: who beats joint training for certain, and by how much.

    The colour names the learner, its strength the points won; white cells: none is surely above joint training.
    """
    shots = sorted({cell["shots"] for cell in cells})
    xs, ys = (sorted({cell[axis] for cell in cells}) for axis in axes)
    figure, panels = plt.subplots(1, len(shots), figsize=(1.5 + 0.75 * len(xs) * len(shots), 1.6 + 0.8 * len(ys)),
                                  layout="constrained", squeeze=False, sharey=True)  # fmt: skip
    winners: list[str] = []
    for panel, count in zip(panels[0], shots, strict=True):
        for cell in (cell for cell in cells if cell["shots"] == count):
            x, y = xs.index(cell[axes[0]]), ys.index(cell[axes[1]])
            name, sure = winner(cell)
            rivals = [pair for pair in cell["paired"] if pair["b"] == "joint"]
            points = 100 * (sure or max(rivals, key=lambda pair: pair["difference"]))["difference"]
            if sure:
                winners.append(name)
                panel.add_patch(plt.Rectangle((x - 0.5, y - 0.5), 1, 1, color=COLOURS.get(name, "#777777"),
                                              alpha=min(0.25 + points / 25, 1), linewidth=0))  # fmt: skip
            joint = 100 * cell["methods"]["joint"]["mean"]
            panel.text(x, y, f"{points:+.0f}\n({joint:.0f})", ha="center", va="center", fontsize=8,
                       color="white" if sure and points > 10 else "black",
                       fontweight="bold" if sure else "normal")  # fmt: skip
        panel.set(title=f"{count} shot{'s' * (count > 1)}", xlabel=axes[0], xlim=(-0.5, len(xs) - 0.5),
                  ylim=(-0.5, len(ys) - 0.5))  # fmt: skip
        panel.set_xticks(range(len(xs)), [x if isinstance(x, str) else f"{x:g}" for x in xs])
        panel.set_yticks(range(len(ys)), [y if isinstance(y, str) else f"{y:g}" for y in ys])
        panel.grid(False)
    panels[0][0].set_ylabel(axes[1])
    handles = [plt.Rectangle((0, 0), 1, 1, color=COLOURS.get(name, "#777777")) for name in dict.fromkeys(winners)]
    handles.append(plt.Rectangle((0, 0), 1, 1, facecolor="white", edgecolor="#999999"))
    names = [*(label(name) for name in dict.fromkeys(winners)), "none surely above joint training"]
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), fontsize=8)
    figure.suptitle("Points of the best learner above joint training, darker for more (in brackets: joint training, "
                    "balanced accuracy in %)", fontsize=10)  # fmt: skip
    return figure
