"""What a run leaves for people to read: `report.md` with its figures, and `model/` with its card."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from metalib import plots
from metalib.checkpoint import write_atomically
from metalib.config import Config, read_config
from metalib.errors import BadInput
from metalib.evaluation import METRICS
from metalib.folders import FREE, read_json, trained_with
from metalib.learners import Learner

Clean = Callable[[object], str]
Evaluation = dict[str, Any]  # the content of evaluation.json


def escape(text: object) -> str:
    """Text that stands as itself in Markdown: no HTML, no links, no new columns."""
    plain = re.sub(r"&(?=#?\w+;)", "&amp;", " ".join(str(text).split())).replace("<", "&lt;")
    return re.sub(r"([\\`*_\[\]|~#>])", r"\\\1", plain)


def table(head: Sequence[str], rows: Sequence[Sequence[object]], clean: Clean = escape) -> str:
    """A Markdown table; cells go through `clean` (`str` for a terminal, where no sign has a meaning)."""
    lines = [[clean(cell) for cell in head], ["---"] * len(head), *([clean(cell) for cell in row] for row in rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def percent(point: dict[str, Any]) -> str:
    """`{"mean", "ci95"}`, fractions → `91.2 (88.9 to 93.5)`, in percent."""
    low, high = point["ci95"]
    mean, *ends = (f"{100 * each:.1f}" for each in (point["mean"], low or 0, high or 0))
    return mean if low is None or ends[0] == ends[1] else f"{mean} ({ends[0]} to {ends[1]})"


def trained(methods: dict[str, Any]) -> dict[str, Any]:
    """The methods without those that are learners before their meta-training."""
    return {name: entry for name, entry in methods.items() if not name.startswith(plots.UNTRAINED)}


def scores_table(evaluation: Evaluation, clean: Clean = escape) -> str:
    """All methods on all test domains together."""
    rows = [[plots.label(name), *(percent(entry["overall"][metric]) for metric in METRICS)]
            for name, entry in trained(evaluation["methods"]).items()]  # fmt: skip
    return table(["method", *(metric.replace("_", " ") for metric in METRICS)], rows, clean)


def verdict(pair: dict[str, Any]) -> str:
    """A paired difference in words; where the interval holds 0 it says that there is no difference to be seen."""
    low, high = pair["ci95"]
    a, b, points = plots.label(pair["a"]), plots.label(pair["b"]), 100 * pair["difference"]
    if low is None or low <= 0 <= high:
        return f"no difference seen between {a} and {b}"
    return f"{a} above {b} by {points:.1f} points" if points > 0 else f"{a} below {b} by {-points:.1f} points"


def paired_table(evaluation: Evaluation, metric: str = "balanced_accuracy", clean: Clean = escape) -> str:
    """The paired differences in one score, in points."""
    rows = [
        [
            f"{plots.label(pair['a'])} − {plots.label(pair['b'])}",
            percent({"mean": pair["difference"], "ci95": pair["ci95"]}),
            verdict(pair),
        ]
        for pair in evaluation["paired"]
        if pair["metric"] == metric and not pair["b"].startswith(plots.UNTRAINED)
    ]
    return table([f"{metric.replace('_', ' ')}, difference in points", "with 95% interval", "in words"], rows, clean)


def domains_table(evaluation: Evaluation, metric: str = "balanced_accuracy", clean: Clean = escape) -> str:
    """One score for each method and test domain."""
    methods = trained(evaluation["methods"])
    domains = list(next(iter(methods.values()))["domains"])
    rows = [[plots.label(name), *(percent(entry["domains"][domain][metric]) for domain in domains)]
            for name, entry in methods.items()]  # fmt: skip
    return table([metric.replace("_", " "), *domains], rows, clean)


def gains_table(evaluation: Evaluation, metric: str = "balanced_accuracy", clean: Clean = escape) -> str:
    """What meta-training gave each learner, against itself before it; empty where that was not tested."""
    rows = []
    for pair in evaluation["paired"]:
        if pair["metric"] == metric and pair["b"].startswith(plots.UNTRAINED):
            after, before = (evaluation["methods"][pair[side]]["overall"][metric] for side in ("a", "b"))
            gain = {"mean": pair["difference"], "ci95": pair["ci95"]}
            rows.append([plots.label(pair["a"]), percent(after), percent(before), percent(gain)])
    head = [metric.replace("_", " "), "meta-trained", "before", "gain in points, with 95% interval"]
    return table(head, rows, clean) if rows else ""


def summary(folder: Path) -> str:
    """The tables of a finished run, for a terminal."""
    evaluation = read_json(folder / "evaluation.json")
    episodes = evaluation["episodes"]
    words = "{count} test episodes, {shots} shots and {queries} queries per class; percent, with 95% intervals\n\n"
    tables = (scores_table(evaluation, str), paired_table(evaluation, clean=str), gains_table(evaluation, clean=str),
              domains_table(evaluation, clean=str))  # fmt: skip
    return words.format(**episodes) + "\n".join(each for each in tables if each)


def over_seeds(folders: Sequence[Path]) -> str:
    """Several runs that differ in their seed only: mean score and spread over the seeds, as Markdown.

    Raises:
        BadInput: a folder without `evaluation.json`, or runs that differ in more than their seed.
    """
    if not folders:
        raise BadInput("no runs to put into a table — name the folders of finished runs")
    for folder in folders:
        if not (folder / "evaluation.json").exists():
            raise BadInput(f"{str(folder)!r} holds no evaluation.json — name folders of finished runs")
    runs = [read_json(folder / "evaluation.json") for folder in folders]
    for folder, run in zip(folders, runs, strict=True):
        if not isinstance(run.get("episodes"), dict) or not {"methods", "paired"} <= run.keys():
            raise BadInput(f"{str(folder)!r}: its evaluation.json is not whole — `metalib evaluate` makes it again")
    if len({trained_with(folder).get("reviews") for folder in folders}) > 1:
        raise BadInput("the runs were trained on different reviews and cannot be put into one table")
    configs = [read_config(folder / "config.yaml") for folder in folders]
    seeds = [config.seed for config in configs]
    if len(set(seeds)) < len(seeds):
        raise BadInput(f"the runs have the seeds {', '.join(map(str, seeds))} — name runs of different ones")
    for key in (key for key in asdict(configs[0]) if key not in (*FREE, "seed", "data")):
        if len(different := {repr(getattr(config, key)) for config in configs}) > 1:
            raise BadInput(f"the runs differ in more than their seed: {key} is {' and '.join(sorted(different))}")
    if len({run["episodes"]["sha256"] for run in runs}) > 1:
        raise BadInput("the runs were tested on different episodes and cannot be put into one table")
    if len({tuple(run["methods"]) for run in runs}) > 1:
        raise BadInput("the runs tested different methods and cannot be put into one table")

    def spread(values: list[float]) -> list[str]:
        points = [100 * value for value in values]
        deviation = f"{stdev(points):.1f}" if len(points) > 1 else "–"
        return [f"{fmean(points):.1f}", deviation, *(f"{point:.1f}" for point in points)]

    head = ["mean over seeds", "standard deviation", *(f"seed {seed}" for seed in seeds)]
    scores = []
    for name in runs[0]["methods"]:
        means = [run["methods"][name]["overall"]["balanced_accuracy"]["mean"] for run in runs]
        scores.append([plots.label(name), *spread(means)])
    differences = []
    for place, pair in enumerate(runs[0]["paired"]):
        if pair["metric"] == "balanced_accuracy":
            found = [run["paired"][place] for run in runs]
            cells = [percent({"mean": one["difference"], "ci95": one["ci95"]}) for one in found]
            names = f"{plots.label(pair['a'])} − {plots.label(pair['b'])}"
            differences.append([names, *spread([one["difference"] for one in found])[:2], *cells])
    return (
        table(["balanced accuracy, %", *head], scores)
        + "\n"
        + table(["paired difference, points", *head[:2], *(f"{seed}, 95% interval" for seed in head[2:])], differences)
    )


def read_metrics(folder: Path, config: Config) -> dict[str, list[dict[str, Any]]]:
    """The lines of `metrics.jsonl` of the run's learner and of its baselines."""
    files = {name: folder / "baselines" / name / "metrics.jsonl" for name in config.baselines}
    files[config.learner] = folder / "metrics.jsonl"
    metrics = {}
    for name, file in files.items():
        try:
            if file.exists():
                metrics[name] = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        except ValueError as error:
            raise BadInput(f"{str(file)!r} is broken: {error} — `metalib train --resume` says from where") from error
    return metrics


def write_report(folder: Path) -> None:
    """Draw the figures that the folder's files allow, and write `report.md`."""
    config = read_config(folder / "config.yaml")
    evaluation = read_json(folder / "evaluation.json")
    curves = read_json(folder / "curves.json")
    queries = evaluation["episodes"]["queries"]
    figures = {
        "learning_curve": plots.learning_curve(read_metrics(folder, config)),
        "adaptation_curve": plots.accuracy_curve(curves["adaptation"], "steps", queries),
        "domains": plots.domain_scores(trained(evaluation["methods"])),
    }
    if "shots" in curves:
        figures["shot_curve"] = plots.accuracy_curve(curves["shots"], "shots", queries)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=120)
        plots.plt.close(figure)
    images = "\n".join(f"![{name.replace('_', ' ')}]({name}.png)\n" for name in figures)
    episodes = evaluation["episodes"]
    text = f"""# {escape(plots.label(config.learner))} on {escape(Path(config.data).name)}

{episodes["count"]} episodes on the test domains, {episodes["shots"]} shots and {episodes["queries"]} queries per class;
all methods learn the same episodes (SHA-256 `{episodes["sha256"][:16]}`). Percent, with 95% intervals.
Unit of the intervals: {evaluation["unit"]}.

{scores_table(evaluation)}
{paired_table(evaluation)}
{gains_table(evaluation)}
{domains_table(evaluation)}
{images}
Settings: [config.yaml](config.yaml). All numbers: [evaluation.json](evaluation.json), [curves.json](curves.json),
[metrics.jsonl](metrics.jsonl).
"""
    write_atomically(folder / "report.md", text.encode())


def write_model(folder: Path, learner: Learner, tokenizer: Any, config: Config) -> None:
    """Save the meta-learned model in Hugging Face format, with a card filled from the run."""
    from huggingface_hub import ModelCard, ModelCardData

    learner.save(folder / "model")
    tokenizer.model_max_length = config.max_length  # so that whoever opens it cuts where the learner did
    tokenizer.save_pretrained(folder / "model")
    evaluation = read_json(folder / "evaluation.json")
    data = ModelCardData(library_name="transformers", tags=["meta-learning", config.learner],
                         pipeline_tag="text-classification" if learner.is_classifier else "feature-extraction",
                         )  # fmt: skip
    how = learner.how_it_adapts(f"{config.shots} reviews per class")
    settings = table(["setting", "value"], [[k, v] for k, v in asdict(config).items() if k not in ("out", "resume")])
    episodes = evaluation["episodes"]
    card = f"""---
{data.to_yaml()}
---
# A meta-learned starting point for classifying reviews

Trained with {escape(plots.label(config.learner))} on {escape(Path(config.data).name)}. It is meant to be adapted
to a new domain from a few labelled reviews of it ({how}, in the test below), and not
to be used as it is.

## How it did on domains it had not seen

{episodes["count"]} episodes, {episodes["shots"]} shots and {episodes["queries"]} queries per class; percent, with
95% intervals ({evaluation["unit"]}).

{scores_table(evaluation)}
{paired_table(evaluation)}
## Limits

The test domains are {escape(", ".join(config.test_domains))}; the intervals say nothing about others.
Classes: {escape(", ".join(learner.model.config.id2label.values()))}. Texts are cut to {config.max_length} tokens.

## Settings

{settings}"""
    ModelCard(card).save(folder / "model" / "README.md")
