"""When does it pay: learners compared over a grid of worlds and shots, cell by cell, on the same episodes."""

import json
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from itertools import product
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from tqdm.auto import tqdm

from metalib.checkpoint import write_atomically
from metalib.config import Config, make_config
from metalib.errors import BadInput
from metalib.evaluation import Episodes, interval, score, score_interval, winner
from metalib.folders import alone_in, begin, check_given, log_to, read_json, refuse_other_settings, write_json
from metalib.plots import label, phase_diagram, plt
from metalib.processes import from_main
from metalib.report import percent, table
from metalib.runs import load_splits, predict_all, test_episodes, train_learners
from metalib.tasks import hash_reviews
from metalib.training import Workbench, prepare

METRIC = "balanced_accuracy"
Cell = dict[str, Any]


def worlds(config: Config, grid: dict[str, list[str]]) -> tuple[list[tuple[str, Config]], list[int]]:
    """The trainings of a grid, each once, name → settings, and the shots at which each is tested.

    Raises:
        BadInput: a setting or value that does not exist, shots that are no whole numbers above 0, or a world without
            joint training and a rival.
    """
    grid = dict(grid)
    if apart := {"learner", "baselines"} & grid.keys():
        raise BadInput(f"{' and '.join(sorted(apart))}: every cell compares the same learners — name them all, as in "
                       "--learner reptile --baselines joint,fomaml")  # fmt: skip
    shots = [make_config({"shots": value}, "--grid").shots for value in grid.pop("shots", [str(config.shots)])]
    named: dict[str, Config] = {}
    for values in product(*grid.values()):
        world = make_config({**vars(config), **dict(zip(grid, values, strict=True))}, "--grid")
        learners = world.learners
        if "joint" not in learners or len(learners) == 1:
            raise BadInput(f"rivals are compared with joint training; the learners are {', '.join(sorted(learners))} "
                           "— name joint and a rival, as in --learner reptile --baselines joint")  # fmt: skip
        named[",".join(f"{key}={spelled(value)}" for key, value in settings_of(world, grid).items()) or "all"] = world
    if not named or not shots:
        raise BadInput("a setting of the grid has no values — write setting=value,value,…")
    return list(named.items()), sorted(set(shots))


def spelled(value: Any) -> str:
    """A setting's value in the name of a world: 0 and 0.0 are the same one."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def phase(config: Config, grid: dict[str, list[str]]) -> Path:
    """Train the run's learners in every world of the grid and compare them at all shots.

    Returns the folder with `phase.json`, `phase.md` and `phase.png`. Whatever is finished is not done again with
    `resume`: a cell is in `phase.json` or not, and a training that was broken off goes on from its checkpoint.

    Raises:
        BadInput: before anything is trained or written; where a world was begun with another model, before that world.
    """
    accelerator, config, folder = begin(config, "phase-")
    trainings, shots = worlds(config, grid)
    for name, world in trainings:
        refuse_other_settings(folder / name, world, () if "data" in grid else ("data",))
    cells = finished_cells(folder / "phase.json", grid, accelerator)
    done = {(cell["world"], cell["shots"]) for cell in cells}
    for name, world in trainings:  # are there reviews enough, and those of before? Before the work
        with accelerator.main_process_first():
            splits = load_splits(world)
        test_episodes(replace(world, shots=max(shots)), splits)
        check_given(folder / name, world, {"reviews": hash_reviews(splits.train, splits.validation)})
    with alone_in(folder, config, accelerator), log_to(folder, accelerator):
        for name, world in tqdm(trainings, "worlds", disable=not accelerator.is_main_process):
            missing = [count for count in shots if (name, count) not in done]
            if not missing:
                continue
            with accelerator.main_process_first():
                splits = load_splits(world)
            bench = prepare(replace(world, resume=True), splits, accelerator)
            check_given(folder / name, world, bench.given)
            with alone_in(folder / name, world, accelerator):
                thetas = train_learners(bench, folder / name)
            for count in missing:
                cells.append({"world": name, **settings_of(world, grid), **compare_at(bench, thetas, count)})
                if accelerator.is_main_process:
                    write(folder, cells)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return folder


def finished_cells(path: Path, grid: dict[str, list[str]], accelerator: Accelerator) -> list[Cell]:
    """The cells that are there already, the same on all processes; none at the start.

    Raises:
        BadInput: the file is broken, or its grid is one over other settings.
    """
    cells = read_cells(path) if path.exists() else []
    cells = json.loads(from_main(accelerator, json.dumps(cells).encode()))  # machines need not share a disk
    axes = [name for name in grid if name != "shots"]
    if cells and axes_of(cells) != axes:
        raise BadInput(f"{str(path)!r} holds a grid over {axes_of(cells)}, not {axes} — name another --out")
    return cells


def axes_of(cells: Sequence[Cell]) -> list[str]:
    """The settings that a grid is made of, shots left out."""
    return [name for name in cells[0] if name not in ("world", "shots", "episodes", "methods", "paired")]


def settings_of(world: Config, grid: dict[str, list[str]]) -> dict[str, Any]:
    """The values of the grid's settings in one world, lists as one text."""
    values = {name: getattr(world, name) for name in grid if name != "shots"}
    return {name: ",".join(value) if isinstance(value, tuple) else value for name, value in values.items()}


def compare_at(bench: Workbench, thetas: dict[str, Any], shots: int) -> Cell:
    """One cell: every learner's balanced accuracy, and its paired difference from joint training and from the best.

    `simultaneous` intervals hold for all pairs of the cell's learners together (Bonferroni): whoever looks for the best
    of several rivals must ask more of each.
    """
    episodes = test_episodes(replace(bench.config, shots=shots), bench.splits)
    predictions = predict_all(bench, thetas, episodes, shots=shots)
    values = {name: score(predicted[:, -1], episodes.labels)[METRIC] for name, predicted in predictions.items()}
    ranked = sorted(values, key=lambda name: -float(np.mean(values[name])))
    pairs = [(name, "joint") for name in ranked if name != "joint"]
    pairs += [(ranked[0], name) for name in ranked[1:] if "joint" not in (ranked[0], name)]
    level = simultaneous_level(len(values))
    return {
        "shots": shots,
        "episodes": len(episodes.tasks),
        "methods": {name: score_interval(values[name], episodes) for name in values},
        "paired": [paired(a, b, values[a] - values[b], episodes, level) for a, b in pairs],
    }


def simultaneous_level(learners: int) -> float:
    """The level of each interval at which those of all pairs of `learners` ≥ 2 hold together in 95 of 100 cases."""
    return 1 - 0.05 / comb(learners, 2)


def paired(a: str, b: str, differences: np.ndarray, episodes: Episodes, level: float) -> dict[str, Any]:
    """The entry of one paired difference a − b, from its values in each episode."""
    entry = interval(differences, episodes)
    wide = interval(differences, episodes, level)["ci95"]
    return {"a": a, "b": b, "difference": entry["mean"], "ci95": entry["ci95"], "simultaneous": wide}


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


def write(folder: Path, cells: list[Cell]) -> None:
    """A table, a figure, and `phase.json`, which comes last and makes the cells count."""
    axes = axes_of(cells)
    text = (
        f"Balanced accuracy on {cells[0]['episodes']} test episodes in percent, with 95% intervals. The last column "
        "holds simultaneous 95% intervals (Bonferroni over the pairs of learners in a cell).\n\n"
    )
    write_atomically(folder / "phase.md", (text + phase_table(cells, axes)).encode())
    if len(axes) == 2:
        figure, content = phase_diagram(cells, axes), BytesIO()
        figure.savefig(content, dpi=120)
        plt.close(figure)
        write_atomically(folder / "phase.png", content.getvalue())
    write_json(folder / "phase.json", {"axes": axes, "cells": cells})


def read_cells(path: Path) -> list[Cell]:
    """The cells of a `phase.json`.

    Raises:
        BadInput: it cannot be read, or holds no cells.
    """
    try:
        cells = read_json(path).get("cells")
    except BadInput:
        cells = None
    if not isinstance(cells, list) or not cells:
        raise BadInput(f"{str(path)!r} holds no cells that can be read — delete it, and `metalib phase … --resume` "
                       "makes it again from the trainings beside it")  # fmt: skip
    return cells
