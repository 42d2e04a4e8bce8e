"""The real results, from the data and the encoder: `python benchmarks/real.py --help`; RESULTS.md is what comes out.

A piece is one learner with one seed. Each is trained and tested in a folder of its own under `--runs` and skipped where
it is finished; a piece that was stopped goes on from its last checkpoint.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from time import process_time
from typing import Any, Literal

import numpy as np
import tables
import torch
import tyro
from frozen import Known, RememberedReviews, above_encoder, lower_part, moves_encoder, skip_layers
from heads import Heads, JointHeads, own_heads
from probe import NAME as PROBE
from probe import probe_logits
from protocols import (
    arsc_splits,
    arsc_tasks,
    arsc_validation_tasks,
    at_thresholds,
    log_odds,
    natural_splits,
    threshold,
    threshold_rows,
)
from safetensors.torch import load

from metalib.checkpoint import read_checkpoint
from metalib.config import Config, read_config
from metalib.errors import MetalibError
from metalib.evaluation import compare, constant_predictions, score, summarise
from metalib.folders import read_json, refuse_other_settings, start_folder, write_json
from metalib.inner import InnerLoop, adapt, untouched
from metalib.learners import LEARNERS, Learner, MetricLearner
from metalib.models import TokenizedReviews
from metalib.processes import make_accelerator
from metalib.reviews import Splits, load_reviews, split_domains
from metalib.tasks import Task, hash_tasks
from metalib.training import Workbench, meta_train, prepare
from metalib.tuning import combinations, parse_grid

Setting = Literal["amazon_original", "arsc"]
ROOT = Path(__file__).resolve().parent.parent
PER_CLASS = 1500  # ARSC: at most so many reviews of each class teach a threshold's head
SUPPORT, QUERY, SPLITS = 80, 20, 50  # the original's setting: reviews of a split, splits of each domain
VALIDATION, DRAWS = ("apparel", "music", "sports_&_outdoors"), 3  # tuning; ARSC's support sets of each of their tasks
FIRST = InnerLoop(300, 1e-3, 64, schedule="linear", adapts="head")  # ARSC: how a threshold's head is learned
Logits = list[np.ndarray]  # (queries, classes) of each task


@dataclass
class Run:
    """Train and test every learner of a setting; writes its files in results/."""

    setting: tyro.conf.Positional[Setting]
    data: str
    """The reviews: the original's schema, or ARSC's file or folder."""
    model: str
    """Folder or hub name of a BERT."""
    runs: Path = ROOT / "runs" / "real"
    """Where pieces are trained."""
    only: tuple[str, ...] = ()
    """These learners alone."""
    seeds: int = 3
    """At most so many seeds."""
    whole: bool = False
    """At the test let all weights adapt, not the head alone: rows of their own, from the same trained weights."""


@dataclass
class Tune:
    """Score settings on validation domains, taken from the training domains; adds to results/SETTING/tuning.json."""

    setting: tyro.conf.Positional[Setting]
    data: str
    """The reviews."""
    model: str
    """Folder or hub name of a BERT."""
    learner: str
    """Whose settings."""
    grid: tuple[str, ...]
    """Values to try, e.g. `--grid adapt_lr=1e-4,3e-4 adapt_steps=5,10`."""
    runs: Path = ROOT / "runs" / "real"
    """Where they are trained."""
    average: bool = False
    """Score the mean of all weights that were trained as well, e.g. of `--grid seed=0,1,2`."""


@dataclass
class Tables:
    """Write RESULTS.md, and draw the figures, from the files in results/."""


# ---- one piece ------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def memory(model: str, frozen_layers: int, max_length: int) -> Known:
    """What a model's frozen layers make of texts, for a whole process; the last alone is kept: it takes gigabytes."""
    return {}


def make_bench(config: Config, splits: Splits) -> Workbench:
    """The library's workbench, with a model that begins above the frozen layers and reviews that remember these."""
    bench = prepare(replace(config, baselines=()), splits, make_accelerator())
    lower = lower_part(bench.model, config.frozen_layers)
    known = memory(config.model, config.frozen_layers, config.max_length)
    skip_layers(bench.model, config.frozen_layers)
    bench.reviews = {part: RememberedReviews(each, lower, known) for part, each in bench.reviews.items()}
    return bench


def task_logits(
    learner: Learner, reviews: TokenizedReviews, tasks: list[Task], known: Known | None = None,
    heads: Heads | None = None,
) -> Logits:  # fmt: skip
    """Logits of each task after learning its support set; leaves no trace.

    known: the memory of a trained encoder's features, where more than one call is to share them.
    heads: where the head starts, for tasks of each threshold; else where the training left it.
    """
    if not moves_encoder(learner):
        learner, reviews = above_encoder(learner, reviews, {} if known is None else known)
    found = []
    for place, task in enumerate(tasks):
        with untouched(learner.model, learner.weights):
            for name, parameter in heads[threshold(task.domain)].items() if heads else ():
                learner.weights.flat[learner.weights.slices[name]] = parameter
            learner.fit(reviews, task.support, (0, place))
            found.append(learner.logits(reviews, task.query).numpy())
    return found


def threshold_heads(learner: Learner, bench: Workbench, known: Known) -> Heads:
    """A head for each of ARSC's thresholds, learned from the training domains' reviews above the trained encoder."""
    lifted, reviews = above_encoder(learner, bench.reviews["train"], known)
    heads = {}
    for name, rows in threshold_rows(bench.splits.train, PER_CLASS).items():
        with untouched(lifted.model, lifted.weights):
            adapt(lifted.model, lifted.weights, reviews, rows, FIRST, (0, len(heads)))
            heads[name] = {each: lifted.weights.flat[place].clone() for each, place in lifted.weights.slices.items()}
    return heads


def all_logits(learner: Learner, bench: Workbench, part: str, tasks: list[Task], known: Known) -> dict[str, Logits]:
    """`plain`: logits as trained; `known`: with the threshold's head, where there are thresholds and heads."""
    found = {"plain": task_logits(learner, bench.reviews[part], tasks, known, own_heads(learner))}
    if at_thresholds(bench.splits.train) and not isinstance(learner, MetricLearner):
        heads = threshold_heads(learner, bench, known)
        found["known"] = task_logits(learner, bench.reviews[part], tasks, known, heads)
    return found


def train_piece(config: Config, splits: Splits, folder: Path) -> tuple[Workbench, float]:
    """The workbench with the trained weights, and the processor minutes that took (0: they came from the folder)."""
    bench, started = make_bench(config, splits), process_time()
    meta_train(bench, replace(config, resume=True, checkpoint_every=10**6), folder)
    return bench, (process_time() - started) / 60


def task_scores(
    logits: dict[str, Logits], tasks: list[Task], labels: np.ndarray, odds: dict[str, float]
) -> dict[str, Any]:
    """Task → kind of prediction (`tables.KINDS`) → its scores.

    odds: threshold → log odds of the classes in training. A class-balanced learner does not know them; `half` and
        `odds` add half of them, and all, to the margins of `known` (of `plain`, where a learner has no head).
    """
    found: dict[str, Any] = {}
    for place, task in enumerate(tasks):
        margins = {kind: each[place][:, 1] - each[place][:, 0] for kind, each in logits.items()}
        if odds:
            best, shift = margins.get("known", margins["plain"]), odds[threshold(task.domain)]
            margins |= {"half": best + shift / 2, "odds": best + shift}
        truth = labels[task.query]
        margins["always_positive"] = np.ones(len(truth))
        found[f"{task.domain}/{task.index}"] = {
            kind: {metric: float(value[0]) for metric, value in
                   score((margin > 0).astype(int)[None], truth[None]).items()}
            for kind, margin in margins.items()
        }  # fmt: skip
    return found


def run_piece(run: Run, config: Config, splits: Splits, tasks: list[Task]) -> None:
    """Train and test one learner with one seed, unless it is done; writes `head.json` and `head.npz` (or `whole.…`).

    Raises:
        BadInput: the piece's folder was started with other settings.
    """
    folder, kind = run.runs / run.setting / f"{config.learner}-{config.seed}", "whole" if run.whole else "head"
    settings = replace(config, baselines=(), resume=True)
    refuse_other_settings(folder, settings)
    if (folder / f"{kind}.json").exists():
        return
    start_folder(folder, settings)
    bench, minutes = train_piece(config, splits, folder)
    facts = {"learner": config.learner, "adapts": kind, "seed": config.seed,
             "review_passes": config.meta_steps * config.passes_per_step()}  # fmt: skip
    test_piece(run, bench, tasks, folder, facts, minutes)


def test_piece(
    run: Run, bench: Workbench, tasks: list[Task], folder: Path, facts: dict[str, Any], minutes: float
) -> None:
    """Test what a bench has learned; writes `head.json` and `head.npz` (or `whole.…`)."""
    started, kind = process_time(), facts["adapts"]
    whole = {"adapt": "all", "adapt_lr": tables.WHOLE_LR, "adapt_steps": tables.WHOLE_STEPS[run.setting]}
    tested = replace(bench.config, **(whole if kind == "whole" else {"adapt": "head"}))
    logits = (probe_logits(bench, "test", tasks, PER_CLASS) if facts["learner"] == PROBE else
              all_logits(bench.learner(tested), bench, "test", tasks, {}))  # fmt: skip
    facts = {**facts, "minutes": {"training": minutes, "test": (process_time() - started) / 60}}
    arrays = {f"{name}-{place}": each for name, lot in logits.items() for place, each in enumerate(lot)}
    np.savez_compressed(folder / f"{kind}.npz", **arrays)
    write_json(folder / f"{kind}.json", facts)
    print(f"{folder.name}: {facts['review_passes']} passes, {facts['minutes']}", flush=True)


def run_probe(run: Run, base: Config, splits: Splits, tasks: list[Task]) -> None:
    """Test the encoder as it comes by its sentence vectors, unless that is done or not asked for."""
    folder = run.runs / run.setting / f"{PROBE}-0"
    if run.whole or (run.only and PROBE not in run.only):
        return
    refuse_other_settings(folder, base)
    if (folder / "head.json").exists():
        return
    start_folder(folder, replace(base, resume=True))
    facts = {"learner": PROBE, "adapts": "head", "seed": 0, "review_passes": 0}
    test_piece(run, make_bench(base, splits), tasks, folder, facts, 0.0)


def run_average(run: Run, config: Config, splits: Splits, tasks: list[Task]) -> None:
    """Test the one model whose weights are the mean of all seeds', where these are done (Wortsman et al. 2022)."""
    sources = [run.runs / run.setting / f"{config.learner}-{seed}" for seed in range(tables.SEEDS["arsc"]["joint"])]
    folder = run.runs / run.setting / f"{config.learner}-average"
    if (folder / "head.json").exists() or not all((source / "head.json").exists() for source in sources):
        return
    folder.mkdir(exist_ok=True)
    bench, facts, points = make_bench(config, splits), [read_json(source / "head.json") for source in sources], []
    for source in sources:
        kept = read_checkpoint(source / "checkpoint")
        assert kept is not None, f"{source} was tested and has no checkpoint"
        points.append(load(kept[1])["theta"])
    bench.weights.restore(torch.stack(points).mean(dim=0))
    total = {"review_passes": sum(each["review_passes"] for each in facts), "averaged": len(facts)}
    test_piece(run, bench, tasks, folder, {**facts[0], **total}, sum(each["minutes"]["training"] for each in facts))


def settings_of(base: Config, name: str) -> Config:
    """Of a learner. With a head for each threshold: joint training's, but for length of texts and steps at the test."""
    if name != JointHeads.name:
        return base.for_learner(name)
    own = {"adapt_steps": tables.HEADS_STEPS, "max_length": tables.HEADS_LENGTH}
    return replace(base.for_learner("joint"), learner=name, **own)


def pieces(run: Run, base: Config) -> list[Config]:
    """The settings of every piece: the first seed of all learners, then the other seeds; longer texts at the end."""
    more = (JointHeads.name,) if run.setting == "arsc" else ()
    names = [name for name in (*base.baselines, *more, base.learner) if not run.only or name in run.only]
    if run.whole:
        names = [name for name in names if not issubclass(LEARNERS[name], MetricLearner)]
    plan = [(name, seed) for seed in range(run.seeds) for name in names
            if seed < tables.SEEDS[run.setting].get(name, 1)]  # fmt: skip
    configs = [replace(settings_of(base, name), seed=seed) for name, seed in plan]
    return sorted(configs, key=lambda config: config.max_length)


def finished(folder: Path) -> list[tuple[dict[str, Any], dict[str, Logits]]]:
    """Facts and logits of the pieces that are done, by learner and seed."""
    found = []
    for file in [*sorted(folder.glob("*/head.json")), *sorted(folder.glob("*/whole.json"))]:
        logits: dict[str, Logits] = {}
        with np.load(file.with_suffix(".npz")) as arrays:
            for name in arrays.files:
                logits.setdefault(name.partition("-")[0], []).append(arrays[name])
        found.append((read_json(file), logits))
    return found


# ---- the original's setting -----------------------------------------------------------------------------------------


def run_original(run: Run, base: Config) -> None:
    """Every learner on the same splits of the three low-resource domains; writes `evaluation.json`."""
    splits = split_domains(load_reviews(run.data), base.test_domains, 0)
    episodes = natural_splits(splits.test, splits.test_domains, SPLITS, SUPPORT, QUERY)
    run_probe(run, base, splits, episodes.tasks)
    for config in pieces(run, base):
        run_piece(run, config, splits, episodes.tasks)
    done = {tables.method(facts): (facts, logits) for facts, logits in finished(run.runs / run.setting)}
    order = [name for learner in (PROBE, *base.baselines, base.learner) for name in (learner, f"{learner}*")
             if name in done]  # fmt: skip
    predictions = {"majority": constant_predictions(episodes, lambda task: np.ones(len(task.query), dtype=np.int64))}
    predictions |= {name: np.stack([each.argmax(-1) for each in done[name][1]["plain"]]) for name in order}
    texts = splits.test["text"][:]
    evaluation = {
        "episodes": {"count": len(episodes.tasks), "sha256": hash_tasks(episodes.tasks, texts),
                     "support": SUPPORT, "query": QUERY},
        "methods": {name: summarise(said, episodes) for name, said in predictions.items()},
        "paired": [pair for place, a in enumerate(order) for b in ("majority", PROBE, "finetuned", "joint")
                   if b in ("majority", *order[:place])
                   for pair in compare({each: predictions[each] for each in (b, a)}, episodes, a)],
        "cost": {name: done[name][0] for name in order},
    }  # fmt: skip
    write_json(ROOT / "results" / run.setting / "evaluation.json", evaluation)


# ---- ARSC -----------------------------------------------------------------------------------------------------------


def smallest_task(base: Config) -> int:
    """Reviews of each class that a training task must have, so that every learner can draw from it."""
    configs = [base.for_learner(name) for name in (*base.baselines, base.learner)]
    return max(config.train_shots + config.query_rows for config in configs)


def run_arsc(run: Run, base: Config) -> None:
    """Every learner on the twelve target tasks; writes `scores.json`."""
    splits = arsc_splits(load_reviews(run.data), base.test_domains, (), smallest_task(base))
    tasks, labels, odds = arsc_tasks(splits.test), np.asarray(splits.test["label"][:]), log_odds(splits.train)
    run_probe(run, base, splits, tasks)
    for config in pieces(run, base):
        run_piece(run, config, splits, tasks)
        run_average(run, base.for_learner("joint"), splits, tasks)  # as soon as it can be, while its memory is there
    done = finished(run.runs / run.setting)
    found = [{**facts, "tasks": task_scores(logits, tasks, labels, odds)} for facts, logits in done]
    facts = {"training_tasks": len(splits.train_domains), "training_reviews": len(splits.train), "log_odds": odds}
    write_json(ROOT / "results" / run.setting / "scores.json", {**facts, "pieces": found})


# ---- tuning ---------------------------------------------------------------------------------------------------------


def validation_setting(tune: Tune, base: Config) -> tuple[Splits, list[Task]]:
    """Training domains without the validation domains, and the validation domains' tasks; test domains stay unseen."""
    reviews = load_reviews(tune.data)
    if tune.setting == "arsc":
        splits = arsc_splits(reviews, base.test_domains, VALIDATION, smallest_task(base))
        return splits, arsc_validation_tasks(splits.validation, DRAWS)
    splits = split_domains(reviews, base.test_domains, VALIDATION)
    return splits, natural_splits(splits.validation, splits.validation_domains, SPLITS // 2, SUPPORT, QUERY).tasks


def tune_learner(tune: Tune, base: Config) -> None:
    """Train where the settings ask for it, score every combination; adds lines to the setting's `tuning.json`."""
    splits, tasks = validation_setting(tune, base)
    labels, odds = np.asarray(splits.validation["label"][:]), log_odds(splits.train)
    known: Known = {}
    file = ROOT / "results" / tune.setting / "tuning.json"
    rows, trained = read_json(file)["rows"] if file.exists() else [], Path()

    def add(bench: Workbench, config: Config, settings: dict[str, Any], models: int = 1) -> None:
        logits = all_logits(bench.learner(replace(config, adapt="head")), bench, "validation", tasks, known)
        means = mean_scores(task_scores(logits, tasks, labels, odds))
        precision = {"precision": "bf16"} if bench.accelerator.mixed_precision == "bf16" else {}
        rows.append({"learner": tune.learner, "settings": {**settings, **precision}, "review_passes":
                     models * config.meta_steps * config.passes_per_step(), **means})  # fmt: skip
        print(tune.learner, settings, means, flush=True)
        write_json(file, {"validation_domains": list(splits.validation_domains), "tasks": len(tasks), "rows": rows})

    points = []
    for choice, config in combinations(replace(settings_of(base, tune.learner), baselines=()), parse_grid(tune.grid)):
        fixed = {"meta_steps": config.meta_steps, **{key: value for key, value in choice.items() if "adapt" not in key}}
        folder = tune.runs / f"{tune.setting}-tune" / tune.learner / "-".join(f"{k}={v}" for k, v in fixed.items())
        if folder != trained:
            (bench, _), known, trained = train_piece(config, splits, folder), {}, folder
            points.append(bench.weights.snapshot())
        add(bench, config, choice)
    if tune.average:
        bench.weights.restore(torch.stack(points).mean(dim=0))
        known = {}
        add(bench, config, {**choice, "averaged": len(points)}, len(points))


def mean_scores(scores: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Unweighted means over the tasks: kind of prediction → metric → fraction."""
    kinds = next(iter(scores.values())).keys() & tables.KINDS.keys()
    return {kind: {metric: fmean(task[kind][metric] for task in scores.values()) for metric in
                   ("accuracy", "balanced_accuracy")} for kind in tables.KINDS if kind in kinds}  # fmt: skip


def main(words: list[str] | None = None) -> None:
    """Entry point."""
    asked = tyro.cli(Run | Tune | Tables, args=words)
    LEARNERS[JointHeads.name] = JointHeads
    torch.set_num_threads(1)  # so that the numbers are the same everywhere
    if isinstance(asked, Tables):
        tables.write(ROOT)
        return
    base = replace(read_config(ROOT / "configs" / f"{asked.setting}.yaml"), data=asked.data, model=asked.model)
    try:
        if isinstance(asked, Tune):
            tune_learner(asked, base)
        elif asked.setting == "arsc":
            run_arsc(asked, base)
        else:
            run_original(asked, base)
    except MetalibError as error:
        raise SystemExit(f"error: {error}".replace("--out", "--runs")) from error


if __name__ == "__main__":
    main()
