"""Choosing settings: a small grid, scored on the validation domains; the test domains are never looked at."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

from metalib.checkpoint import write_atomically
from metalib.config import Config, make_config, parse_assignments
from metalib.errors import BadInput
from metalib.evaluation import METRICS, Episodes, predict_episodes, score, score_interval
from metalib.folders import alone_in, begin, log_to, refuse_other_settings
from metalib.learners import LEARNERS
from metalib.report import percent, table
from metalib.runs import load_splits
from metalib.tasks import TaskSampler
from metalib.training import Workbench, meta_train, prepare

# What changes without a new training.
TEST_SETTINGS = ("shots", "queries", "adapt_steps", "adapt_lr", "adapt_batch")


def parse_grid(texts: Sequence[str]) -> dict[str, list[str]]:
    """`["inner_lr=1e-4,3e-4", "meta_batch=5"]` → each setting with the values to try.

    Raises:
        BadInput: an entry that is not `setting=value,value`, or a setting that comes twice.
    """
    values = {name: text.split(",") for name, text in parse_assignments(texts, "--grid").items()}
    grid = {name: [value.strip() for value in row if value.strip()] for name, row in values.items()}
    if len(grid) < len(texts):
        raise BadInput(f"--grid {' '.join(texts)}: a setting comes twice — give all its values at once, with commas")
    if not grid or not all(grid.values()):
        raise BadInput("nothing to try — give at least one --grid setting=value,value,…")
    return grid


def combinations(config: Config, grid: dict[str, list[str]]) -> list[tuple[dict[str, str], Config]]:
    """Every combination of the grid's values, with its checked settings; those that share a training stand together."""

    def base(learner: str) -> dict[str, Any]:
        """The learner's own settings first; the grid's come after, and must not be overridden again."""
        own = config.for_learner(learner) if learner in LEARNERS else config  # `make_config` says what is unknown
        return {**asdict(own), "joint": (), "finetuned": (), "own": (), "baselines": ()}

    names = sorted(grid, key=lambda name: name in TEST_SETTINGS)
    chosen = [dict(zip(names, values, strict=True)) for values in product(*(grid[name] for name in names))]
    return [(choice, make_config({**base(choice.get("learner", config.learner)), **choice}, "--grid"))
            for choice in chosen]  # fmt: skip


def tune(config: Config, grid: dict[str, list[str]]) -> Path:
    """Train and score every combination on validation episodes; returns the folder with `tuning.json` and `tuning.md`.

    A combination of settings that only the test uses is scored with the weights of the training before it.

    Raises:
        BadInput: a setting or value that does not exist, or no validation domain to score on.
    """
    accelerator, config, folder = begin(config, "tune-")
    candidates = combinations(config, grid)
    if any(each.validation_count == 0 and not each.validation_domains for _, each in candidates):
        raise BadInput("tuning scores settings on validation domains, and there are none — set validation_count")
    free = () if "data" in grid else ("data",)
    for number, (_, candidate) in enumerate(candidates):
        refuse_other_settings(folder / f"{number:03d}", candidate, free)  # resumed with another grid
        with accelerator.main_process_first():
            load_splits(candidate)
    rows: list[dict[str, Any]] = []
    trained: tuple[Config, Workbench] | None = None
    with alone_in(folder, config, accelerator), log_to(folder, accelerator):
        for number, (choice, candidate) in enumerate(candidates):
            training = replace(candidate, **{name: getattr(config, name) for name in TEST_SETTINGS})
            if trained is None or trained[0] != training:
                bench = prepare(replace(candidate, validations=0), load_splits(candidate), accelerator)
                with alone_in(folder / f"{number:03d}", candidate, accelerator):
                    meta_train(bench, bench.config, folder / f"{number:03d}")
                trained = (training, bench)
            rows.append({"settings": choice, **score_on_validation(trained[1], candidate)})
            if accelerator.is_main_process:
                write_table(folder, rows)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return folder


def score_on_validation(bench: Workbench, config: Config) -> dict[str, Any]:
    """The three scores, each with mean and interval, of the weights as they stand."""
    sampler = TaskSampler(bench.splits.validation, config.shots, config.queries, config.split_seed, in_turn=True)
    episodes = Episodes.draw(sampler, config.validation_episodes)
    predictions = predict_episodes(
        bench.learner(config), bench.reviews["validation"], episodes, [config.adapt_steps], config.split_seed,
        bench.accelerator, "Scoring",
    )  # fmt: skip
    values = score(predictions[:, 0], episodes.labels)
    return {name: score_interval(values[name], episodes) for name in METRICS}


def write_table(folder: Path, rows: list[dict[str, Any]]) -> None:
    """`tuning.json`, and the same as a table in `tuning.md`, best first."""
    ranked = sorted(rows, key=lambda row: -row["balanced_accuracy"]["mean"])
    write_atomically(folder / "tuning.json", (json.dumps(ranked, indent=1) + "\n").encode())
    names = list(rows[0]["settings"])
    cells = [[*row["settings"].values(), *(percent(row[metric]) for metric in METRICS)] for row in ranked]
    text = (
        "Scores on the validation domains, in percent, with 95% intervals; best balanced accuracy first. "
        "Rows whose intervals overlap widely are not told apart by this.\n\n"
        + table([*names, *(metric.replace("_", " ") for metric in METRICS)], cells)
    )
    write_atomically(folder / "tuning.md", text.encode())
