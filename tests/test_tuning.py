"""Tuning: a grid is trained as seldom as can be, and scored on the validation domains only."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from metalib import folders, tuning
from metalib.config import Config
from metalib.errors import BadInput
from metalib.training import Workbench
from metalib.tuning import parse_grid, tune

GRID = {"adapt_steps": ["0", "30"], "inner_lr": ["3e-3", "3e-4"]}


class Poison:
    """Whoever looks at it raises an error."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the test domains were looked at: {name}")

    def __len__(self) -> int:
        raise AssertionError("the test domains were looked at")

    __getitem__ = __iter__ = __len__


@pytest.fixture(scope="module")
def settings(reviews: Dataset, config: Config, tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("tuning")
    (folder / "reviews.json").write_text(json.dumps(reviews.to_list()))
    return replace(
        config, data=str(folder / "reviews.json"), meta_steps=3, shots=10, adapt_batch=10, out=str(folder / "grid")
    )


@pytest.fixture(scope="module")
def trainings(settings: Config) -> list[Config]:
    """The settings of the trainings of a 2 × 2 grid, which stands in `settings.out`; the test reviews were poisoned."""
    done: list[Config] = []
    with pytest.MonkeyPatch.context() as patch:

        def count(bench: Workbench, config: Config, folder: Path) -> None:
            done.append(config)
            train(bench, config, folder)

        def poisoned(*arguments: Any) -> Workbench:
            bench = prepare(*arguments)
            bench.reviews["test"] = Poison()  # type: ignore[assignment]
            bench.splits = replace(bench.splits, test=Poison())  # type: ignore[type-var]
            return bench

        train: Callable[..., None] = tuning.meta_train
        prepare = tuning.prepare
        patch.setattr(tuning, "meta_train", count)
        patch.setattr(tuning, "prepare", poisoned)
        assert tune(settings, GRID) == Path(settings.out or "")
    return done


def rows(config: Config) -> list[dict[str, Any]]:
    return json.loads((Path(config.out or "") / "tuning.json").read_text())


def test_settings_of_the_test_need_no_training_of_their_own(trainings: list[Config], settings: Config) -> None:
    assert [config.inner_lr for config in trainings] == [3e-3, 3e-4]
    assert all(config.meta_steps == 3 and config.validations == 0 for config in trainings)
    found = {(row["settings"]["inner_lr"], row["settings"]["adapt_steps"]) for row in rows(settings)}
    assert found == {(lr, steps) for lr in GRID["inner_lr"] for steps in GRID["adapt_steps"]}
    assert len(rows(settings)) == 4


def test_rows_are_sorted_and_the_table_says_what_the_json_says(trainings: list[Config], settings: Config) -> None:
    scores = [row["balanced_accuracy"]["mean"] for row in rows(settings)]
    assert scores == sorted(scores, reverse=True) and scores[0] > scores[-1]
    lines = (Path(settings.out or "") / "tuning.md").read_text().splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert table[0] == ["inner\\_lr", "adapt\\_steps", "accuracy", "balanced accuracy", "macro f1"]
    for row, cells in zip(rows(settings), table[2:], strict=True):
        assert cells[:2] == [row["settings"]["inner_lr"], row["settings"]["adapt_steps"]]
        for cell, metric in zip(cells[2:], ("accuracy", "balanced_accuracy", "macro_f1"), strict=True):
            low, high = row[metric]["ci95"]
            spread = "" if low == high else f" ({100 * low:.1f} to {100 * high:.1f})"
            assert cell == f"{100 * row[metric]['mean']:.1f}{spread}"


def test_a_row_of_the_grid_equals_the_same_settings_alone(trainings: list[Config], settings: Config) -> None:
    alone = replace(settings, out=f"{settings.out}-alone", adapt_steps=30)
    tune(alone, {"inner_lr": ["3e-4"]})
    (expected,) = rows(alone)
    (found,) = [row for row in rows(settings) if row["settings"] == {"inner_lr": "3e-4", "adapt_steps": "30"}]
    assert {**found, "settings": None} == {**expected, "settings": None}


def test_resuming_with_the_same_grid_changes_nothing_and_with_another_is_refused(
    trainings: list[Config], settings: Config
) -> None:
    before = rows(settings)
    again = replace(settings, resume=True)
    tune(again, GRID)
    assert rows(settings) == before
    with pytest.raises(BadInput, match=r"000' was started with inner_lr=0\.003, not 0\.05"):
        tune(again, {"inner_lr": ["5e-2"]})
    assert rows(settings) == before


def test_a_grid_started_again_by_the_launcher_resumes_by_itself(
    trainings: list[Config], settings: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadInput, match="is there already — add --resume"):
        tune(settings, GRID)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    before = (Path(str(settings.out)) / "tuning.json").read_bytes()
    assert (tune(settings, GRID) / "tuning.json").read_bytes() == before
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    with pytest.raises(BadInput, match="--max_restarts needs --out"):
        tune(replace(settings, out=None), GRID)


def test_what_a_grid_does_not_do_is_said(
    settings: Config, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders.log, "propagate", True)
    with pytest.raises(BadInput, match="is there already"):
        tune(replace(settings, trackers=("tensorboard",), untrained=True), GRID)
    assert "trackers and untrained: for `metalib train` alone, and without effect here" in caplog.text


def test_grids_are_read_from_words() -> None:
    assert parse_grid(["inner-lr=1e-4, 3e-4", "meta_batch=5"]) == {"inner_lr": ["1e-4", "3e-4"], "meta_batch": ["5"]}


def test_a_setting_that_comes_twice_is_refused() -> None:
    with pytest.raises(BadInput, match="comes twice — give all its values at once"):
        parse_grid(["inner_lr=1e-3", "inner-lr=2e-3"])


def test_own_settings_of_the_learner_hold_unless_the_grid_says_otherwise() -> None:
    config = Config(learner="joint", joint={"epsilon": 0.5, "adapt_lr": 0.25})
    ((_, first), (_, second)) = tuning.combinations(config, {"epsilon": ["0.1", "0.2"]})
    assert (first.epsilon, second.epsilon) == (0.1, 0.2)
    assert first.adapt_lr == first.for_learner("joint").adapt_lr == 0.25
    assert first.for_learner("joint").epsilon == 0.1


def test_learners_of_a_grid_have_their_own_settings() -> None:
    config = Config(meta_steps=9, joint={"train_shots": 7}, own={"fomaml": {"inner_steps": 2}})
    found = {each.learner: each for _, each in tuning.combinations(
        config, {"learner": ["reptile", "joint", "fomaml", "finetuned"]})}  # fmt: skip
    assert (found["reptile"].train_shots, found["joint"].train_shots) == (config.train_shots, 7)
    assert (found["fomaml"].inner_steps, found["finetuned"].meta_steps) == (2, 0)
    with pytest.raises(BadInput, match="there is no such learner"):
        tuning.combinations(config, {"learner": ["reptil"]})
