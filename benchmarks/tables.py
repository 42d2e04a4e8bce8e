"""RESULTS.md and its figures, from the files in results/ alone."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from metalib import plots, report
from metalib.config import read_config

Piece = dict[str, Any]  # one learner with one seed, from arsc/scores.json
METRICS = ("accuracy", "balanced_accuracy", "macro_f1")
TEMPLATE = Path(__file__).resolve().parent / "results_template.md"
SEEDS: dict[str, dict[str, int]] = {  # planned; learners that are not named have one
    "amazon_original": {},
    "arsc": {"joint": 3, "heads": 3, "reptile": 3, "fomaml": 3},
}
HEADS_STEPS, HEADS_LENGTH = 0, 256  # with a head for each threshold: steps at the test, tokens (results/arsc/tuning.md)
WHOLE_LR = 3e-4  # where all weights adapt at the test: results/amazon/tuning.md
WHOLE_STEPS = {"amazon_original": 16, "arsc": 5}  # two epochs of 80 reviews, five of 10
GOAL = {"accuracy": 86, "balanced_accuracy": 80}
KINDS = {  # of prediction, on ARSC
    "plain": "as trained",
    "known": "threshold's head",
    "half": "and half the odds",
    "odds": "and all the odds",
}


plots.LABELS |= {f"{name}*": f"{words}, all weights adapt" for name, words in plots.LABELS.items()}
plots.LABELS["joint+"] = f"{plots.LABELS['joint']}, seeds averaged"
plots.LABELS["probe"], plots.COLOURS["probe"] = "logistic regression, encoder as it comes", "#661100"
HEADS = "joint training, three heads"
plots.LABELS["heads"], plots.COLOURS["heads"] = f"{HEADS}, {HEADS_LENGTH} tokens", "#117733"


def method(facts: dict[str, Any]) -> str:
    """`reptile`; `reptile*`: all weights adapt at the test, not the head alone; `reptile+`: the mean of its seeds."""
    name: str = facts["learner"]
    return name + "*" * (facts.get("adapts") == "whole") + "+" * ("averaged" in facts)


def learner(method: str) -> str:
    """The method without its mark."""
    return method.rstrip("*+")


def fill(method: str) -> Literal["none", "full"]:
    """Hollow marks where all weights adapt, or several seeds are one."""
    return "full" if method == learner(method) else "none"


def read(root: Path, name: str) -> dict[str, Any]:
    """A file of results/."""
    content: dict[str, Any] = json.loads((root / "results" / name).read_text(encoding="utf-8"))
    return content


# ---- ARSC ------------------------------------------------------------------------------------------------------------


def by_method(scores: dict[str, Any]) -> dict[str, list[Piece]]:
    """Method → its pieces by seed; the method with the highest mean balanced accuracy last."""
    methods: dict[str, list[Piece]] = {}
    for piece in sorted(scores["pieces"], key=lambda piece: piece["seed"]):
        methods.setdefault(method(piece), []).append(piece)
    return dict(sorted(methods.items(), key=lambda item: fmean(mean(piece) for piece in item[1])))


def mean(piece: Piece, kind: str = "plain", metric: str = "balanced_accuracy", inside: str = "") -> float:
    """Unweighted mean over the tasks (those with `inside` in their name), in percent."""
    return 100 * fmean(task[kind][metric] for name, task in piece["tasks"].items() if inside in name)


def spread(values: list[float]) -> str:
    """`84.0 ± 0.4`: mean and standard deviation over the seeds; the mean alone of one seed."""
    return f"{fmean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def kinds_of(piece: Piece) -> list[str]:
    """The kinds of prediction that a piece has; one without a head has no `known`."""
    return [kind for kind in KINDS if kind in next(iter(piece["tasks"].values()))]


def arsc_table(scores: dict[str, Any]) -> str:
    """Mean over the twelve tasks; mean and spread over the seeds."""
    some = scores["pieces"][0]
    constant = " / ".join(f"{mean(some, 'always_positive', metric):.1f}" for metric in METRICS[:2])
    rows = [["always positive", "–", *[constant] * len(KINDS), f"{mean(some, 'always_positive', METRICS[2]):.1f}"]]
    for name, pieces in by_method(scores).items():
        cells = [" / ".join(spread([mean(piece, kind, metric) for piece in pieces]) for metric in METRICS[:2])
                 if kind in kinds_of(pieces[0]) else "–" for kind in KINDS]  # fmt: skip
        macro = spread([mean(piece, "plain", METRICS[2]) for piece in pieces])
        rows.append([plots.label(name), str(pieces[0].get("averaged", len(pieces))), *cells, macro])
    return report.table(["accuracy / balanced accuracy, %", "seeds", *KINDS.values(), "macro F1, as trained"], rows)


def threshold_table(scores: dict[str, Any]) -> str:
    """Accuracy and balanced accuracy by threshold, over four domains and all seeds."""
    thresholds = tuple(scores["log_odds"])
    constant = [f"{mean(scores['pieces'][0], 'always_positive', 'accuracy', t):.1f} / 50.0" for t in thresholds]
    rows = [["always positive", *constant]]
    for name, pieces in by_method(scores).items():
        for kind in (kind for kind in ("plain", "half") if kind in kinds_of(pieces[0])):
            cells = [[fmean(mean(piece, kind, metric, t) for piece in pieces) for metric in METRICS[:2]]
                     for t in thresholds]  # fmt: skip
            words = {"plain": "", "half": ", half the odds"}[kind]
            rows.append([plots.label(name) + words, *(f"{a:.1f} / {b:.1f}" for a, b in cells)])
    return report.table(["accuracy / balanced accuracy, %", *thresholds], rows)


def domain_means(pieces: list[Piece], kind: str, metric: str) -> np.ndarray:
    """(domains,) mean over a domain's thresholds and all pieces, fractions."""
    domains = sorted({name.rpartition(".")[0] for name in pieces[0]["tasks"]})
    return np.asarray([fmean(mean(piece, kind, metric, f"{d}.t") / 100 for piece in pieces) for d in domains])


def arsc_difference(a: list[Piece], b: list[Piece], metric: str, kind: str = "plain") -> dict[str, Any]:
    """a − b, each the mean of all its seeds, as `evaluation.json` has it; the 95% interval is over the target domains.

    Domains are the unit (t with 3 degrees of freedom): the thresholds of one domain are about the same products.
    """
    gaps = domain_means(a, kind, metric) - domain_means(b, kind, metric)
    half = stats.t.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / np.sqrt(len(gaps))
    middle = float(gaps.mean())
    return {"a": a[0]["learner"], "b": b[0]["learner"], "metric": metric, "difference": middle,
            "ci95": [middle - float(half), middle + float(half)]}  # fmt: skip


def arsc_pairs(scores: dict[str, Any]) -> list[dict[str, Any]]:
    """Each learner less the baselines, in both scores."""
    methods = by_method(scores)
    names = [(a, b) for b in ("probe", "joint") for a in methods if a not in ("probe", b) and a == learner(a)]
    if {"reptile", "protonet"} <= methods.keys():
        names.append(("protonet", "reptile"))
    return [arsc_difference(methods[a], methods[b], metric) for a, b in names if b in methods
            for metric in METRICS[:2]]  # fmt: skip


def arsc_paired_table(scores: dict[str, Any]) -> str:
    """Paired differences on the same tasks: as trained, and between what knows the threshold."""
    methods = by_method(scores)
    pairs = [(pair, "") for pair in arsc_pairs(scores)]
    if {"heads", "joint"} <= methods.keys():
        pairs += [(arsc_difference(methods["heads"], methods["joint"], metric, kind), f", both with {words}")
                  for kind, words in (("known", "a threshold's head"), ("half", "half the odds"))
                  for metric in METRICS[:2]]  # fmt: skip
    rows = []
    for (accuracy, kind), (balanced, _) in zip(pairs[::2], pairs[1::2], strict=True):
        cells = [report.percent({"mean": pair["difference"], "ci95": pair["ci95"]}) for pair in (accuracy, balanced)]
        rows.append([f"{plots.label(balanced['a'])} − {plots.label(balanced['b'])}{kind}", *cells])
    return report.table(["difference in points, 95% interval", "accuracy", "balanced accuracy"], rows)


def arsc_cost_table(scores: dict[str, Any]) -> str:
    """Review passes and minutes of a piece."""
    rows = []
    for name, pieces in ((name, pieces) for name, pieces in by_method(scores).items() if not name.endswith("*")):
        minutes = [[piece["minutes"][part] for piece in pieces if piece["minutes"]] for part in ("training", "test")]
        rows.append([plots.label(name), f"{pieces[0]['review_passes']:,}",
                     *(f"{fmean(each):.1f}" if each else "–" for each in minutes)])  # fmt: skip
    return report.table(["ARSC, a seed", "review passes", "minutes of training", "minutes of testing"], rows)


# ---- the original's setting ------------------------------------------------------------------------------------------


def original_paired_table(evaluation: dict[str, Any]) -> str:
    """Paired differences on the same splits, in all three scores."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for pair in evaluation["paired"]:
        found.setdefault((pair["a"], pair["b"]), {})[pair["metric"]] = pair
    rows = []
    for (a, b), pairs in found.items():
        cells = [report.percent({"mean": pairs[metric]["difference"], "ci95": pairs[metric]["ci95"]})
                 for metric in METRICS]  # fmt: skip
        rows.append([f"{plots.label(a)} − {plots.label(b)}", *cells])
    return report.table(["difference in points, 95% interval", *(each.replace("_", " ") for each in METRICS)], rows)


def original_cost_table(evaluation: dict[str, Any]) -> str:
    """Review passes and minutes of each learner."""
    cost = evaluation["cost"]
    rows = [[plots.label(name), f"{facts['review_passes']:,}",
             f"{cost[name.removesuffix('*')]['minutes']['training']:.1f}", f"{facts['minutes']['test']:.1f}"]
            for name, facts in cost.items()]  # fmt: skip
    return report.table(["the original's setting", "review passes", "minutes of training", "minutes of testing"], rows)


# ---- what was tried --------------------------------------------------------------------------------------------------


def tuning_table(tuning: dict[str, Any]) -> str:
    """Every setting that was scored on validation domains; best mean of the two scores first, for each learner."""
    rows = sorted(tuning["rows"], key=lambda row: (row["learner"], -sum(row["plain"].values())))
    kinds = [kind for kind in KINDS if any(kind in row for row in rows)]
    cells = [
        [HEADS if row["learner"] == "heads" else plots.label(row["learner"]), f"{row['review_passes']:,}",
         ", ".join(f"{key}={value}" for key, value in row["settings"].items()),
         *(" / ".join(f"{100 * row[kind][metric]:.1f}" for metric in METRICS[:2]) if kind in row else "–"
           for kind in kinds)]
        for row in rows
    ]  # fmt: skip
    return report.table(["learner", "review passes", "settings", *(KINDS[kind] for kind in kinds)], cells)


def tuning_page(tuning: dict[str, Any], title: str) -> str:
    """results/SETTING/tuning.md."""
    return f"""# How the settings of {title} were chosen

{tuning["tasks"]} tasks of the validation domains {", ".join(tuning["validation_domains"])}, which are training domains
held out for this; no target domain was looked at. Accuracy / balanced accuracy in percent, one seed: differences of a
point or two say nothing. Where a row names no `max_length`: 64 tokens and four frozen layers up to 6,000 review
passes, 128 and three above. `adapt=head`: the inner loop of the training moved the head alone, too. `largest`: at most
so many reviews of a training task (else all of them).
`precision=bf16`: the training's forward passes in bfloat16, which some processors do several times faster.
`averaged`: one model from the mean of the weights of so many seeds.

{tuning_table(tuning)}"""


# ---- figures ---------------------------------------------------------------------------------------------------------


def original_figure(evaluation: dict[str, Any]) -> Figure:
    """Each method's accuracy and balanced accuracy with 95% intervals, and the majority class's."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
    methods = {name: entry for name, entry in evaluation["methods"].items() if name != "majority"}
    for axes, metric in zip(panels, METRICS, strict=False):
        for place, (name, entry) in enumerate(methods.items()):
            point = entry["overall"][metric]
            low, high = (abs(100 * (end - point["mean"])) for end in point["ci95"])
            axes.errorbar(100 * point["mean"], place, xerr=[[low], [high]], fmt="o", capsize=4,
                          color=plots.COLOURS[learner(name)], fillstyle=fill(name))  # fmt: skip
        constant = 100 * evaluation["methods"]["majority"]["overall"][metric]["mean"]
        axes.axvline(constant, color=plots.COLOURS["majority"], linestyle="--", label=f"majority class: {constant:.1f}")
        axes.set(xlabel=f"{metric.replace('_', ' ')} [%]")
        axes.set_yticks(range(len(methods)), [plots.label(name) for name in methods])
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.suptitle("The original's setting: 80 reviews to learn from, 20 to predict; bars: 95% intervals")
    return figure


def arsc_figure(scores: dict[str, Any]) -> Figure:
    """Balanced accuracy against accuracy, a point a seed, as trained and with class shares; the goal's corner."""
    figure, axes = plt.subplots(figsize=(7.5, 5), layout="constrained")
    for name, pieces in by_method(scores).items():
        for kind, marker in (("plain", "o"), ("half", "^")):
            x, y = ([mean(piece, kind, metric) for piece in pieces] for metric in METRICS[:2])
            axes.plot(x, y, marker, color=plots.COLOURS[learner(name)], fillstyle=fill(name),
                      label=plots.label(name) if kind == "plain" else None)  # fmt: skip
    constant = mean(scores["pieces"][0], "always_positive", "accuracy")
    axes.axvline(constant, color=plots.COLOURS["majority"], linestyle="--", label=f"always positive: {constant:.1f}")
    draw_goal(axes)
    axes.set(title="ARSC, mean over twelve tasks: a point for each seed\n"
             "(circles: as trained; triangles: with the threshold's head and half the odds)",
             xlabel="accuracy [%]", ylabel="balanced accuracy [%]")  # fmt: skip
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper left")
    return figure


def draw_goal(axes: Axes) -> None:
    """The corner in which both goals are met."""
    axes.plot([GOAL["accuracy"], GOAL["accuracy"], 90], [84, GOAL["balanced_accuracy"], GOAL["balanced_accuracy"]],
              color="black", linewidth=1, label="goal: above and to the right")  # fmt: skip


def write(root: Path) -> None:
    """Write RESULTS.md, the pages on tuning and the figures."""
    figures = {"amazon_original": original_figure(read(root, "amazon_original/evaluation.json")),
               "arsc": arsc_figure(read(root, "arsc/scores.json"))}  # fmt: skip
    for name, figure in figures.items():
        figure.savefig(root / "results" / name / "scores.png", dpi=120)
        plt.close(figure)
    for file, text in pages(root).items():
        (root / file).write_text(text, encoding="utf-8")


def pages(root: Path) -> dict[str, str]:
    """File → its text, each made from the JSON files alone."""
    titles = {"amazon_original": "the original's setting", "arsc": "ARSC"}
    tuned = {f"results/{name}/tuning.md": tuning_page(read(root, f"{name}/tuning.json"), title)
             for name, title in titles.items()}  # fmt: skip
    return {**tuned, "RESULTS.md": results_page(root)}


def published_table(published: dict[str, Any]) -> str:
    """What others report of the same twelve tasks."""
    return report.table(["reported by others", "mean accuracy, %"], [[*row] for row in published["rows"]])


def chosen(
    scores: dict[str, Any], tuning: dict[str, Any], run: dict[str, tuple[int, int]]
) -> tuple[str, str] | None:  # fmt: skip
    """Of what was run: method and kind of prediction that are nearest to both goals, or furthest beyond, on validation.

    Domains of validation, mean over the seeds, in the settings of the target tasks; run: learner → steps at the test,
    tokens of a text. None where the search has no row of what was run.
    """
    margins = {}
    for name, pieces in by_method(scores).items():
        rows = [row for row in tuning["rows"] if method(row | row["settings"]) == name
                and row["review_passes"] == pieces[0]["review_passes"] and "dropout" not in row["settings"]
                and tested(row, run["joint"][1]) == run.get(learner(name))]  # fmt: skip
        for kind in KINDS if rows else ():
            if kind in rows[0]:
                margins[name, kind] = min(100 * fmean(row[kind][metric] for row in rows) - goal
                                          for metric, goal in GOAL.items())  # fmt: skip
    return max(margins, key=margins.__getitem__, default=None)


def tested(row: dict[str, Any], length: int) -> tuple[int, int]:
    """Steps at the test and tokens of a text, of a row of the search; length: where it names none."""
    return int(row["settings"]["adapt_steps"]), int(row["settings"].get("max_length", length))


def goal_words(scores: dict[str, Any], choice: tuple[str, str] | None) -> str:
    """Whether the method that was chosen reaches both goals, and which others do."""
    found = {(name, kind): tuple(fmean(mean(piece, kind, metric) for piece in pieces) for metric in METRICS[:2])
             for name, pieces in by_method(scores).items() for kind in kinds_of(pieces[0])}  # fmt: skip
    accuracy, balanced = GOAL.values()

    def words(key: tuple[str, str]) -> str:
        return f"{plots.label(key[0])} ({KINDS[key[1]]}) with {found[key][0]:.1f} and {found[key][1]:.1f}"

    told = "The search has none of the settings that were run, and chose nothing."
    if choice:
        met = "reached" if found[choice][0] >= accuracy and found[choice][1] >= balanced else "missed"
        told = f"What was chosen for it on validation domains has {met} it: **{words(choice)}**."
    others = [words(key) for key, (a, b) in found.items() if a >= accuracy and b >= balanced and key != choice]
    tops = [words(max(found, key=lambda key: found[key][place])) for place in (0, 1)]
    beside = f"Not chosen, and reaching both: {'; '.join(others)}. " if others else "No other row reaches both. "
    return (f"The goal was a mean accuracy of {accuracy} and a balanced accuracy of {balanced}, both at once. {told} "
            f"{beside}Highest in accuracy: {tops[0]}; in balanced accuracy: {tops[1]}.")  # fmt: skip


def missing_words(scores: dict[str, Any], names: Sequence[str]) -> str:
    """Which planned pieces of ARSC are not there."""
    done = {(piece["learner"], piece["seed"]) for piece in scores["pieces"]}
    plan = {name: range(SEEDS["arsc"].get(name, 1)) for name in names}
    absent = {name: [str(seed) for seed in seeds if (name, seed) not in done] for name, seeds in plan.items()}
    said = [f"{plots.label(name)} (seed {', '.join(seeds)})" for name, seeds in absent.items() if seeds]
    return f"Planned on ARSC and not yet run: {'; '.join(said)}." if said else "All planned pieces were run."


def above_joint(pairs: list[dict[str, Any]]) -> str:
    """Which meta-learners are above joint training in accuracy or balanced accuracy, with an interval above 0."""
    found = [f"{plots.label(pair['a'])} in {pair['metric'].replace('_', ' ')}" for pair in pairs
             if pair["b"] == "joint" and pair["a"] in ("reptile", "fomaml", "protonet", "matching")
             and pair["metric"] in METRICS[:2] and pair["ci95"][0] > 0]  # fmt: skip
    return f"Surely above joint training: {', '.join(found)}." if found else (
        "None is surely above joint training, in accuracy or balanced accuracy.")


def points(pair: dict[str, Any]) -> str:
    """`2.1 points (−0.5 to 4.7)`: a paired difference with its interval."""
    low, high = pair["ci95"]
    return "{:.1f} points ({:.1f} to {:.1f})".format(*(100 * each for each in (pair["difference"], low, high))).replace(
        "-", "−"
    )


def numbers(scores: dict[str, Any], evaluation: dict[str, Any]) -> dict[str, str]:
    """What the text says, by the names it has in the template."""
    found = {"splits": str(evaluation["episodes"]["count"] // 3)}
    for name, pieces in by_method(scores).items():
        for metric in METRICS[:2]:
            for kind in kinds_of(pieces[0]):
                value = fmean(mean(piece, kind, metric) for piece in pieces)
                found[f"arsc_{name.replace('*', '_whole').replace('+', '_average')}_{metric}_{kind}"] = f"{value:.1f}"
    for name, entry in evaluation["methods"].items():
        for metric in METRICS[:2]:
            found[f"original_{name.replace('*', '_whole')}_{metric}"] = f"{100 * entry['overall'][metric]['mean']:.1f}"
    passes = max(piece["review_passes"] for piece in scores["pieces"] if "averaged" not in piece)
    found |= {"passes": f"{passes:,}",
              "original_passes": f"{evaluation['cost']['joint']['review_passes']:,}"}  # fmt: skip
    found["always_positive"] = f"{mean(scores['pieces'][0], 'always_positive', 'accuracy'):.1f}"
    for setting, pairs in (("arsc", arsc_pairs(scores)), ("original", evaluation["paired"])):
        found |= {f"{setting}_{pair['a']}_{pair['b']}_{pair['metric']}".replace("*", "_whole"): points(pair)
                  for pair in pairs}  # fmt: skip
    return found


def searched(tuning: dict[str, Any], passes: int, kind: str = "plain", learner: str = "joint", **wanted: Any) -> str:
    """`83.8 / 80.5`: accuracy and balanced accuracy in the search, the mean over the seeds of the first setting found.

    wanted: settings of the rows; `""` where a setting must not be named.
    """
    rows = [row for row in tuning["rows"] if (row["learner"], row["review_passes"]) == (learner, passes)
            and all(row["settings"].get(key, "") == value for key, value in wanted.items())]  # fmt: skip
    rows = [row for row in rows if {**row["settings"], "seed": ""} == {**rows[0]["settings"], "seed": ""}]
    return " / ".join(f"{100 * fmean(row[kind][metric] for row in rows):.1f}" for metric in METRICS[:2])


def results_page(root: Path) -> str:
    """RESULTS.md."""
    scores, evaluation = read(root, "arsc/scores.json"), read(root, "amazon_original/evaluation.json")
    base = read_config(root / "configs" / "arsc.yaml")
    tuning, earlier = read(root, "arsc/tuning.json"), read(root, "arsc/earlier.json")["pieces"]
    run = {"joint": (base.for_learner("joint").adapt_steps, base.max_length), "heads": (HEADS_STEPS, HEADS_LENGTH)}
    fill = {
        "short_texts": searched(tuning, 6000, max_length="", adapt_steps="0"),
        "long_texts": searched(tuning, 6000, max_length="128", frozen_layers="3", adapt_steps="0"),
        "more": searched(tuning, 9600, max_length="128", adapt_steps="0", epsilon="", meta_batch=""),
        "longer": searched(tuning, 9600, max_length="256", adapt_steps="0"),
        "mixed": searched(tuning, 9600, meta_batch="8", adapt_steps="0"),
        **{f"seeds_{kind}": searched(tuning, 20000, kind, dropout="") for kind in ("known", "half")},
        **{f"average_{kind}": searched(tuning, 60000, kind, averaged=3) for kind in ("known", "half")},
        **{f"dropout_{kind}": searched(tuning, 20000, kind, dropout="true") for kind in ("known", "half")},
        **{f"long_{kind}": searched(tuning, 58000, kind) for kind in ("known", "half")},
        **{f"heads_{length or 128}_{kind}": searched(tuning, 20000, kind, "heads", adapt_steps="0", max_length=length)
           for length in ("", "256") for kind in KINDS},
        "heads_average": searched(tuning, 60000, "half", "heads", adapt_steps="0"),
        "heads_stepping": searched(tuning, 20000, "half", "heads", adapt_steps="5"),
        **{f"most_{kind}": searched(tuning, 24000, kind, adapt_steps="5") for kind in KINDS},
        "length": base.max_length, "frozen": base.frozen_layers, "whole_lr": WHOLE_LR,
        "whole_original": WHOLE_STEPS["amazon_original"],
        "arsc_table": arsc_table(scores), "threshold_table": threshold_table(scores),
        "arsc_paired": arsc_paired_table(scores), "arsc_cost": arsc_cost_table(scores),
        "published": published_table(read(root, "arsc/published.json")),
        "goal": goal_words(scores, chosen(scores, tuning, run)),
        "original_table": report.scores_table(evaluation), "original_paired": original_paired_table(evaluation),
        "original_domains": report.domains_table(evaluation), "original_cost": original_cost_table(evaluation),
        "training_tasks": scores["training_tasks"], "training_reviews": f"{scores['training_reviews']:,}",
        "missing": missing_words(scores, ["probe", *base.baselines, "heads", base.learner]),
        "odds": ", ".join(f"{name}: {odds:.2f}" for name, odds in scores["log_odds"].items()),
        **{f"earlier_{kind}": " / ".join(f"{fmean(mean(piece, kind, metric) for piece in earlier):.1f}"
                                         for metric in METRICS[:2]) for kind in ("plain", "half")},
        "heads_plain": " / ".join(f"{fmean(mean(piece, 'plain', metric) for piece in by_method(scores)['heads']):.1f}"
                                  for metric in METRICS[:2]),
        "above_joint": above_joint([*arsc_pairs(scores), *evaluation["paired"]]), **numbers(scores, evaluation),
    }  # fmt: skip
    return TEMPLATE.read_text(encoding="utf-8").format(**fill)
