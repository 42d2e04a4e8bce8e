"""Phase diagrams: which worlds are trained, at which shots they are tested, what is done again and what is not."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from datasets import Dataset

from metalib import phase as module
from metalib.config import Config
from metalib.errors import BadInput
from metalib.evaluation import Episodes, interval
from metalib.phase import (
    axes_of,
    paired,
    phase,
    phase_table,
    read_cells,
    simultaneous_level,
    winner,
    worlds,
)
from metalib.plots import phase_diagram
from metalib.tasks import TaskSampler
from metalib.training import Workbench
from metalib.tuning import parse_grid

GRID = {"inner_lr": ["3e-3", "3e-4"], "shots": ["1", "5"]}
NAMES = ["inner_lr=0.003", "inner_lr=0.0003"]


@pytest.fixture(scope="module")
def settings(reviews: Dataset, config: Config, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Two learners, one meta-step, three episodes."""
    folder = tmp_path_factory.mktemp("phase")
    (folder / "reviews.json").write_text(json.dumps(reviews.to_list()))
    return replace(
        config, data=str(folder / "reviews.json"), meta_steps=1, validations=0, eval_episodes=4, baselines=("joint",),
        joint=("meta_steps=1", "train_shots=5"), inner_steps=1, adapt_steps=1, out=str(folder / "grid"),
    )  # fmt: skip


Trained = list[tuple[str, str]]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Trained:
    """(world, learner) of every training that is asked for; one with a checkpoint has nothing left to do."""
    asked: Trained = []
    original: Callable[..., Any] = module.train_learners

    def count(bench: Workbench, folder: Path) -> Any:
        asked.append((folder.name, "resumed" if (folder / "checkpoint").exists() else "new"))
        return original(bench, folder)

    monkeypatch.setattr(module, "train_learners", count)
    return asked


@pytest.fixture(scope="module")
def finished(settings: Config) -> Path:
    return phase(settings, GRID)


def cell(*pairs: tuple[str, str, float, float | None], **more: Any) -> dict[str, Any]:
    """A cell from (a, b, difference, half the width of its simultaneous interval)."""
    entries = [
        {"a": a, "b": b, "difference": d, "ci95": [d - 0.01, d + 0.01],
         "simultaneous": [None, None] if half is None else [d - half, d + half]}
        for a, b, d, half in pairs
    ]  # fmt: skip
    score = {"mean": 0.8, "ci95": [0.7, 0.9]}
    names = dict.fromkeys(["joint", *(a for a, *_ in pairs)])
    return {"shots": 5, "episodes": 60, "methods": {name: score for name in names}, "paired": entries} | more


# --- what a grid is


def test_worlds_stand_in_the_order_of_the_grid_and_shots_in_their_own(config: Config) -> None:
    grid = {"conflict": ["0", "0.5"], "shots": ["20", "1", "5", "1"], "cue": ["1", "0"]}
    trainings, shots = worlds(replace(config, baselines=("joint",)), grid)
    assert [name for name, _ in trainings] == [
        "conflict=0,cue=1", "conflict=0,cue=0", "conflict=0.5,cue=1", "conflict=0.5,cue=0",
    ]  # fmt: skip
    assert [(world.conflict, world.cue) for _, world in trainings] == [(0, 1), (0, 0), (0.5, 1), (0.5, 0)]
    assert shots == [1, 5, 20]
    assert all(world.shots == config.shots for _, world in trainings)  # shots change no training
    assert "shots" in grid  # the caller's grid stays whole


def test_without_shots_the_runs_own_are_taken(config: Config) -> None:
    trainings, shots = worlds(replace(config, baselines=("joint",)), {"shots": ["3"]})
    assert [name for name, _ in trainings] == ["all"] and shots == [3]
    assert worlds(replace(config, baselines=("joint",)), {"cue": ["0"]})[1] == [config.shots]


def test_a_value_spelled_in_two_ways_is_one_world(config: Config) -> None:
    trainings, _ = worlds(replace(config, baselines=("joint",)), {"conflict": ["0", "0.0", "5e-1", "0.50"]})
    assert [name for name, _ in trainings] == ["conflict=0", "conflict=0.5"]


@pytest.mark.parametrize(
    "grid, words",
    [
        ({"conflikt": ["0"]}, "did you mean 'conflict'"),
        ({"conflict": ["2"]}, "conflict is '2'"),
        ({"shots": ["0"]}, "shots is '0'"),
        ({"shots": ["1", "many"]}, "shots is 'many'"),
        ({"conflict": []}, "no values"),
        ({"shots": []}, "no values"),
        ({"learner": ["reptile", "fomaml"]}, "learner: every cell compares the same learners — name them all"),
        ({"baselines": ["joint"], "learner": ["maml"]}, "baselines and learner: every cell"),
    ],
)
def test_a_bad_grid_is_refused(config: Config, grid: dict[str, list[str]], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        worlds(replace(config, baselines=("joint",)), grid)


@pytest.mark.parametrize("baselines", [(), ("finetuned",)])
def test_without_joint_training_there_is_nothing_to_compare_with(config: Config, baselines: tuple[str, ...]) -> None:
    with pytest.raises(BadInput, match="name joint and a rival"):
        worlds(replace(config, baselines=baselines), {"cue": ["0"]})


@pytest.mark.parametrize("texts", [(), ("conflict=",), ("conflict",), ("conflict=,",)])
def test_a_grid_without_values_is_refused(texts: tuple[str, ...]) -> None:
    with pytest.raises(BadInput):
        parse_grid(texts)


def test_too_many_shots_are_refused_before_anything_is_written(settings: Config, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"shots=500 with queries=5 needs 505"):
        phase(replace(settings, out=str(tmp_path / "new")), {**GRID, "shots": ["1", "500"]})
    assert not (tmp_path / "new").exists()


def test_every_world_is_checked_and_not_the_first_only(settings: Config, tmp_path: Path, trained: Trained) -> None:
    with pytest.raises(BadInput, match="queries=400"):
        phase(replace(settings, out=str(tmp_path / "new")), {"queries": ["5", "400"], "shots": ["1"]})
    assert trained == [] and not (tmp_path / "new").exists()


# --- what a cell says


def test_the_level_of_simultaneous_intervals_by_hand() -> None:
    assert simultaneous_level(2) == pytest.approx(0.95)  # one pair
    assert simultaneous_level(3) == pytest.approx(1 - 0.05 / 3)
    assert simultaneous_level(9) == pytest.approx(1 - 0.05 / 36)


def test_a_simultaneous_interval_is_the_one_of_its_level(reviews: Dataset, config: Config) -> None:
    part = reviews.filter(lambda domain: domain in config.test_domains, input_columns="domain")
    episodes = Episodes.draw(TaskSampler(part, 5, 5, in_turn=True), 12)
    differences = np.random.default_rng(0).normal(0.1, 0.2, 12)
    entry = paired("reptile", "joint", differences, episodes, simultaneous_level(3))
    assert entry["ci95"] == interval(differences, episodes)["ci95"]
    assert entry["simultaneous"] == interval(differences, episodes, 1 - 0.05 / 3)["ci95"]
    assert entry["simultaneous"][0] < entry["ci95"][0] < entry["difference"] < entry["ci95"][1]
    assert entry["difference"] == pytest.approx(np.mean([differences[0::2].mean(), differences[1::2].mean()]))


def test_a_cell_with_three_learners_has_its_shots_and_wider_intervals_for_all_pairs(
    bench: Workbench, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, right = np.random.default_rng(0), {"joint": 0.5, "finetuned": 0.7, "reptile": 0.95}

    def made(bench: Workbench, thetas: Any, episodes: Episodes, shots: int) -> Any:
        assert {len(task.support) for task in episodes.tasks} == {2 * shots} == {6}
        labels = episodes.labels
        return {n: np.where(rng.random(labels.shape) < p, labels, 1 - labels)[:, None] for n, p in right.items()}

    monkeypatch.setattr(module, "predict_all", made)
    cell = module.compare_at(replace(bench, config=replace(config, eval_episodes=40)), {}, 3)
    wanted = [("reptile", "joint"), ("finetuned", "joint"), ("reptile", "finetuned")]
    assert [(pair["a"], pair["b"]) for pair in cell["paired"]] == wanted
    for pair in cell["paired"]:
        assert pair["simultaneous"][0] < pair["ci95"][0] < pair["ci95"][1] < pair["simultaneous"][1]


def test_the_winner_is_surely_above_joint_training_and_by_most() -> None:
    assert winner(cell(("reptile", "joint", 0.05, 0.04)))[0] == "reptile"
    assert winner(cell(("reptile", "joint", 0.05, 0.05))) == ("joint", None)  # touches zero
    assert winner(cell(("reptile", "joint", -0.05, 0.01))) == ("joint", None)
    assert winner(cell(("reptile", "joint", 0.05, None))) == ("joint", None)
    name, pair = winner(cell(("maml", "joint", 0.09, 0.1), ("protonet", "joint", 0.03, 0.01),
                             ("reptile", "joint", 0.05, 0.01), ("maml", "reptile", 0.04, 0.01)))  # fmt: skip
    assert name == "reptile" and pair is not None and pair["difference"] == 0.05


# --- the run


def test_a_grid_has_a_cell_for_every_world_and_number_of_shots(finished: Path, settings: Config) -> None:
    cells = read_cells(finished / "phase.json")
    assert [(each["world"], each["shots"]) for each in cells] == [(name, count) for name in NAMES for count in (1, 5)]
    assert axes_of(cells) == ["inner_lr"] and cells[0]["inner_lr"] == 3e-3
    for each in cells:
        assert list(each["methods"]) == ["joint", "reptile"] and each["episodes"] == 4
        assert [(pair["a"], pair["b"]) for pair in each["paired"]] == [("reptile", "joint")]
        (pair,), scores = each["paired"], each["methods"]
        assert pair["difference"] == pytest.approx(scores["reptile"]["mean"] - scores["joint"]["mean"])
        assert pair["simultaneous"] == pair["ci95"]  # a single pair asks for no more
    text = (finished / "phase.md").read_text(encoding="utf-8")
    assert sum(line.startswith("| 0.00") for line in text.splitlines()) == len(cells)
    assert not (finished / "phase.png").exists()  # a single axis


def test_with_resume_only_missing_cells_are_made_and_they_are_the_same(
    finished: Path, settings: Config, trained: Trained
) -> None:
    again, before = replace(settings, resume=True), read_cells(finished / "phase.json")
    phase(again, GRID)
    assert trained == [] and read_cells(finished / "phase.json") == before

    (finished / "phase.json").write_text(json.dumps({"axes": ["inner_lr"], "cells": before[:3]}))
    phase(again, GRID)
    assert trained == [(NAMES[1], "resumed")]  # from its checkpoint, and the first world not at all
    assert read_cells(finished / "phase.json") == before


def test_a_grid_is_not_finished_with_other_reviews(finished: Path, settings: Config, trained: Trained) -> None:
    file = Path(settings.data)
    whole = file.read_text()
    records = json.loads(whole)
    next(record for record in records if record["domain"] not in settings.test_domains)["text"] += " light"
    file.write_text(json.dumps(records))
    try:
        with pytest.raises(BadInput, match="made with other reviews than these"):
            phase(replace(settings, resume=True), GRID)
    finally:
        file.write_text(whole)
    moved = file.with_name("moved.json")
    moved.write_text(whole)
    phase(replace(settings, resume=True, data=str(moved)), GRID)
    assert trained == []
    phase(replace(settings, resume=True), GRID)


def test_a_grid_started_again_by_the_launcher_resumes_by_itself(
    finished: Path, settings: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read_cells(finished / "phase.json")
    kept = json.loads((finished / "phase.json").read_text())
    (finished / "phase.json").write_text(json.dumps({**kept, "cells": kept["cells"][:-1]}))  # killed in a world
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    phase(settings, GRID)
    assert read_cells(finished / "phase.json") == before


def test_a_run_without_resume_leaves_a_finished_one_alone(finished: Path, settings: Config, trained: Trained) -> None:
    with pytest.raises(BadInput, match="--resume"):
        phase(settings, GRID)
    with pytest.raises(BadInput, match=r"holds a grid over \['inner_lr'\]"):
        phase(replace(settings, resume=True), {"cue": ["0"], "shots": ["1"]})
    with pytest.raises(BadInput, match="started with eval_episodes"):
        phase(replace(settings, resume=True, eval_episodes=6), GRID)
    assert trained == []


def test_interrupted_after_the_first_cell_it_goes_on_there(
    settings: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: Path, trained: Trained
) -> None:
    config, compare_at, tested = replace(settings, out=str(tmp_path / "grid")), module.compare_at, []

    def interrupted(bench: Workbench, thetas: dict[str, Any], shots: int) -> dict[str, Any]:
        tested.append((bench.config.inner_lr, shots))
        if len(tested) == 2:
            raise KeyboardInterrupt
        return compare_at(bench, thetas, shots)

    monkeypatch.setattr(module, "compare_at", interrupted)
    with pytest.raises(KeyboardInterrupt):
        phase(config, GRID)
    assert [each["shots"] for each in read_cells(tmp_path / "grid" / "phase.json")] == [1]
    phase(replace(config, resume=True), GRID)
    assert tested == [(3e-3, 1), (3e-3, 5), (3e-3, 5), (3e-4, 1), (3e-4, 5)]
    assert trained == [(NAMES[0], "new"), (NAMES[0], "resumed"), (NAMES[1], "new")]
    assert read_cells(tmp_path / "grid" / "phase.json") == read_cells(finished / "phase.json")


def test_a_cell_counts_once_table_and_figure_show_it(finished: Path, tmp_path: Path, monkeypatch: Any) -> None:
    cells = read_cells(finished / "phase.json")
    module.write(tmp_path, cells[:2])

    def killed(*_: Any) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "phase_table", killed)
    with pytest.raises(KeyboardInterrupt):
        module.write(tmp_path, cells)
    assert read_cells(tmp_path / "phase.json") == cells[:2]


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"cells": []}', '{"cells": 3}'])
def test_a_broken_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "phase.json").write_text(content)
    with pytest.raises(BadInput, match="holds no cells that can be read"):
        read_cells(tmp_path / "phase.json")


# --- the figure


def grid_of_cells(xs: list[Any], ys: list[Any]) -> list[dict[str, Any]]:
    return [cell(("reptile", "joint", 0.1 * place, 0.05), world=f"{x},{y}", conflict=x, cue=y, shots=shots)
            for shots in (1, 5) for place, (x, y) in enumerate((x, y) for x in xs for y in ys)]  # fmt: skip


@pytest.mark.parametrize("xs, ys", [([0.0, 0.5, 1.0], [0.0, 1.0]), (["cnn", "tiny"], [1, 2])])
def test_the_figure_has_a_panel_for_each_number_of_shots(xs: list[Any], ys: list[Any]) -> None:
    cells = grid_of_cells(xs, ys)
    figure = phase_diagram(cells, ["conflict", "cue"])
    assert [axes.get_title() for axes in figure.axes] == ["1 shot", "5 shots"]
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert len(texts) == len(xs) * len(ys) and texts[0] == "+0\n(80)" and texts[1] == "+10\n(80)"
    assert len(figure.axes[0].patches) == len(texts) - 1  # all but the first are surely above
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == [
        x if isinstance(x, str) else f"{x:g}" for x in xs
    ]
    plt.close(figure)


def test_the_table_says_who_wins() -> None:
    rows = phase_table(grid_of_cells([0.0], [0.0, 1.0])[:2], ["conflict", "cue"]).splitlines()
    assert "none above joint training" in rows[2] and rows[2].rstrip(" |").endswith("–")
    assert "| Reptile |" in rows[3] and "10.0 (5.0 to 15.0)" in rows[3]


def test_two_axes_are_drawn_into_the_folder(tmp_path: Path, config: Config) -> None:
    module.write(tmp_path, grid_of_cells([0.0, 1.0], [0.0, 1.0]))
    assert (tmp_path / "phase.png").stat().st_size > 1000
    assert read_cells(tmp_path / "phase.json") == grid_of_cells([0.0, 1.0], [0.0, 1.0])
