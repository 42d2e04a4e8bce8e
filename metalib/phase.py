"""When does it pay: learners compared over a grid of worlds and shots, cell by cell, on the same episodes."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from metalib.config import Config, make_config
from metalib.errors import BadInput
from metalib.evaluation import Episodes, interval, score, score_interval
from metalib.folders import choose_folder, log_to, read_json, refuse_other_settings, start_folder, write_json
from metalib.plots import label, phase_diagram, plt
from metalib.processes import make_accelerator
from metalib.report import percent, table
from metalib.runs import load_splits, predict_all, train_learners
from metalib.tasks import TaskSampler
from metalib.training import Workbench, prepare

log = logging.getLogger("metalib")
METRIC = "balanced_accuracy"
Cell = dict[str, Any]


def worlds(config: Config, grid: dict[str, list[str]]) -> tuple[list[tuple[str, Config]], list[int]]:
    """The trainings of a grid, name → settings, and the shots at which each is tested.

    Raises:
        BadInput: a setting or value that does not exist, or shots that are no whole numbers above 0.
    """
    grid = dict(grid)
    shots = [make_config({"shots": value}, "--grid").shots for value in grid.pop("shots", [str(config.shots)])]
    chosen = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    named = {",".join(f"{k}={v}" for k, v in choice.items()) or "all": choice for choice in chosen}
    return [(name, make_config({**vars(config), **choice}, "--grid")) for name, choice in named.items()], sorted(set(shots))


def phase(config: Config, grid: dict[str, list[str]]) -> Path:
    """Train the run's learners in every world of the grid and compare them at all shots.

    Returns the folder with `phase.json`, `phase.md` and `phase.png`. Whatever is finished is not done again with
    `resume`: a cell is in `phase.json` or not, and a training that was broken off goes on from its checkpoint.

    Raises:
        BadInput: before anything is trained or written.
    """
    trainings, shots = worlds(config, grid)
    accelerator = make_accelerator()
    folder = choose_folder(config, accelerator, "phase-")
    for name, world in trainings:
        refuse_other_settings(folder / name, world)
    cells: list[Cell] = read_json(folder / "phase.json")["cells"] if (folder / "phase.json").exists() else []
    done = {(cell["world"], cell["shots"]) for cell in cells}
    TaskSampler(load_splits(trainings[0][1]).test, max(shots), config.queries)  # enough reviews? Before the work
    if accelerator.is_main_process:
        start_folder(folder, config)
    accelerator.wait_for_everyone()
    with log_to(folder, accelerator):
        for name, world in tqdm(trainings, "worlds", disable=not accelerator.is_main_process):
            missing = [count for count in shots if (name, count) not in done]
            if not missing:
                continue
            with accelerator.main_process_first():
                splits = load_splits(world)
            bench = prepare(replace(world, resume=True), splits, accelerator)
            if accelerator.is_main_process:
                start_folder(folder / name, world)
            accelerator.wait_for_everyone()
            thetas = train_learners(bench, folder / name)
            for count in missing:
                cells.append({"world": name, **settings_of(world, grid), **compare_at(bench, thetas, count)})
                if accelerator.is_main_process:
                    write(folder, cells, world)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return folder


def settings_of(world: Config, grid: dict[str, list[str]]) -> dict[str, Any]:
    """The values of the grid's settings in one world."""
    return {name: getattr(world, name) for name in grid if name != "shots"}


def compare_at(bench: Workbench, thetas: dict[str, Any], shots: int) -> Cell:
    """One cell: every learner's balanced accuracy, and its paired difference from joint training and from the best.

    `simultaneous` intervals hold for all differences of the cell together (Bonferroni): whoever looks for the best of
    several rivals must ask more of each.
    """
    config = bench.config
    sampler = TaskSampler(bench.splits.test, shots, config.queries, config.split_seed, in_turn=True)
    episodes = Episodes.draw(sampler, config.eval_episodes)
    predictions = predict_all(bench, thetas, episodes, shots=shots)
    values = {name: score(predicted[:, -1], episodes.labels)[METRIC] for name, predicted in predictions.items()}
    ranked = sorted(values, key=lambda name: -float(np.mean(values[name])))
    pairs = [(name, "joint") for name in ranked if name != "joint" and "joint" in values]
    pairs += [(ranked[0], name) for name in ranked[1:] if name != "joint"]
    level = 1 - 0.05 / max(len(pairs), 1)
    return {
        "shots": shots,
        "episodes": len(episodes.tasks),
        "methods": {name: score_interval(values[name], episodes) for name in values},
        "paired": [paired(a, b, values[a] - values[b], episodes, level) for a, b in pairs],
    }


def paired(a: str, b: str, differences: np.ndarray, episodes: Episodes, level: float) -> dict[str, Any]:
    """The entry of one paired difference a − b, from its values in each episode."""
    entry = interval(differences, episodes)
    wide = interval(differences, episodes, level)["ci95"]
    return {"a": a, "b": b, "difference": entry["mean"], "ci95": entry["ci95"], "simultaneous": wide}


def winner(cell: Cell) -> tuple[str, dict[str, Any] | None]:
    """The learner that beats joint training by most, and that difference; `joint` where none surely does."""
    above = [pair for pair in cell["paired"] if pair["b"] == "joint" and (pair["simultaneous"][0] or 0) > 0]
    best = max(above, key=lambda pair: pair["difference"], default=None)
    return ("joint", None) if best is None else (best["a"], best)


def phase_table(cells: Sequence[Cell], axes: Sequence[str]) -> str:
    """All cells as a Markdown table."""
    rows = []
    for cell in cells:
        name, pair = winner(cell)
        points = "–" if pair is None else percent({"mean": pair["difference"], "ci95": pair["simultaneous"]})
        rows.append([*(cell[axis] for axis in axes), cell["shots"], *(percent(m) for m in cell["methods"].values()),
                     "none above joint training" if pair is None else label(name), points])  # fmt: skip
    head = [*axes, "shots", *(label(name) for name in cells[0]["methods"]), "best", "above joint training, points"]
    return table(head, rows)


def write(folder: Path, cells: list[Cell], config: Config) -> None:
    """`phase.json`, and the same as a table and as a figure."""
    axes = [name for name in cells[0] if name not in ("world", "shots", "episodes", "methods", "paired")]
    write_json(folder / "phase.json", {"axes": axes, "cells": cells})
    text = (
        f"Balanced accuracy on {cells[0]['episodes']} test episodes in percent, with 95% intervals. The last column "
        "holds simultaneous 95% intervals (Bonferroni over the differences of the cell).\n\n"
    )
    (folder / "phase.md").write_text(text + phase_table(cells, axes), encoding="utf-8")
    if len(axes) == 2:
        figure = phase_diagram(cells, axes)
        figure.savefig(folder / "phase.png", dpi=120)
        plt.close(figure)


def read_cells(path: Path) -> list[Cell]:
    """The cells of a `phase.json`.

    Raises:
        BadInput: it cannot be read, or holds no cells.
    """
    cells = read_json(path).get("cells")
    if not isinstance(cells, list) or not cells:
        raise BadInput(f"{str(path)!r} holds no cells — `metalib phase --resume` makes them")
    return cells
