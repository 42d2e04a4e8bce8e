"""What people read: tables, verdicts, a table over seeds, and figures that say what they show."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from metalib import plots
from metalib.config import Config, write_config
from metalib.errors import BadInput
from metalib.report import escape, over_seeds, percent, table, verdict


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain & simple, 50%", "plain & simple, 50%"),
        ("<b>|*x*", "&lt;b\\>\\|\\*x\\*"),
        ("a_b `c` [d](e) #f ~~g~~", "a\\_b \\`c\\` \\[d\\](e) \\#f \\~\\~g\\~\\~"),
        ("&lt; &#60; &", "&amp;lt; &amp;\\#60; &"),
        ("two\nlines\r\n| in a cell", "two lines \\| in a cell"),
        ("back\\slash", "back\\\\slash"),
    ],
)
def test_no_text_becomes_markup(text: str, shown: str) -> None:
    assert escape(text) == shown
    assert table([text, "b"], [[1, text]]) == f"| {shown} | b |\n| --- | --- |\n| 1 | {shown} |\n"


@pytest.mark.parametrize(
    ("ci95", "shown"), [([0.8, 0.95678], "91.2 (80.0 to 95.7)"), ([None, None], "91.2"), ([0.9123, 0.9123], "91.2")]
)
def test_percent(ci95: Any, shown: str) -> None:
    assert percent({"mean": 0.9123, "ci95": ci95}) == shown


@pytest.mark.parametrize(
    ("difference", "ci95", "said"),
    [
        (0.05, [0.01, 0.09], "Reptile above joint training by 5.0 points"),
        (-0.05, [-0.09, -0.01], "Reptile below joint training by 5.0 points"),
        (0.05, [-0.01, 0.11], "no difference seen between Reptile and joint training"),
        (0.05, [0.0, 0.1], "no difference seen between Reptile and joint training"),
        (0.05, [None, None], "no difference seen between Reptile and joint training"),
    ],
)
def test_verdict_claims_a_difference_only_where_the_interval_does(difference: float, ci95: Any, said: str) -> None:
    assert verdict({"a": "reptile", "b": "joint", "difference": difference, "ci95": ci95}) == said


def a_run(folder: Path, seed: int, reptile: float, majority: float, episodes: str = "0" * 64) -> Path:
    """A folder with the files of a finished run that `over_seeds` reads."""
    folder.mkdir()
    write_config(Config(seed=seed), folder / "config.yaml")
    methods = {name: {"overall": {"balanced_accuracy": {"mean": mean, "ci95": [mean, mean]}}}
               for name, mean in (("majority", majority), ("reptile", reptile))}  # fmt: skip
    pairs = [
        {"a": "reptile", "b": "majority", "metric": metric, "difference": reptile - majority, "ci95": [0.1, 0.6]}
        for metric in ("accuracy", "balanced_accuracy")
    ]
    content = {"episodes": {"sha256": episodes}, "methods": methods, "paired": pairs}
    (folder / "evaluation.json").write_text(json.dumps(content))
    return folder


def test_table_over_seeds(tmp_path: Path) -> None:
    folders = [a_run(tmp_path / "a", 3, 0.8, 0.5), a_run(tmp_path / "b", 4, 0.9, 0.5)]
    lines = over_seeds(folders).splitlines()
    assert lines[0] == "| balanced accuracy, % | mean over seeds | standard deviation | seed 3 | seed 4 |"
    assert lines[2:4] == [
        "| majority class | 50.0 | 0.0 | 50.0 | 50.0 |",
        "| Reptile | 85.0 | 7.1 | 80.0 | 90.0 |",  # √50 = 7.07
    ]
    assert lines[-1] == "| Reptile − majority class | 35.0 | 7.1 | 30.0 (10.0 to 60.0) | 40.0 (10.0 to 60.0) |"


def test_runs_on_different_episodes_are_not_put_into_one_table(tmp_path: Path) -> None:
    folders = [a_run(tmp_path / "a", 3, 0.8, 0.5), a_run(tmp_path / "b", 4, 0.9, 0.5, "1" * 64)]
    with pytest.raises(BadInput, match="different episodes"):
        over_seeds(folders)


def test_runs_that_differ_in_more_than_their_seed_are_not_put_into_one_table(tmp_path: Path) -> None:
    folders = [a_run(tmp_path / "a", 3, 0.8, 0.5), a_run(tmp_path / "b", 3, 0.9, 0.5)]
    with pytest.raises(BadInput, match="seeds 3, 3 — name runs of different ones"):
        over_seeds(folders)
    write_config(Config(seed=4, inner_lr=0.5), folders[1] / "config.yaml")
    with pytest.raises(BadInput, match=r"more than their seed: inner_lr is 0\.\d+ and 0\.5"):
        over_seeds(folders)


def test_runs_trained_on_different_reviews_are_not_put_into_one_table(tmp_path: Path) -> None:
    folders = [a_run(tmp_path / "a", 3, 0.8, 0.5), a_run(tmp_path / "b", 4, 0.9, 0.5)]
    for folder in folders:
        (folder / "metrics.jsonl").write_text(json.dumps({"meta_step": 0, "reviews": folder.name}))
    with pytest.raises(BadInput, match="trained on different reviews"):
        over_seeds(folders)


@pytest.mark.parametrize("content", ["{}", '{"episodes": null}', '{"episodes": {}}'])
def test_an_evaluation_of_another_shape_is_named(tmp_path: Path, content: str) -> None:
    folders = [a_run(tmp_path / "a", 3, 0.8, 0.5), a_run(tmp_path / "b", 4, 0.9, 0.5)]
    (folders[1] / "evaluation.json").write_text(content)
    with pytest.raises(BadInput, match=r"b': its evaluation.json is not whole — `metalib evaluate` makes it again"):
        over_seeds(folders)


# Figures


def point(mean: float, spread: float | None = 0.1) -> dict[str, Any]:
    return {"mean": mean, "ci95": [None, None] if spread is None else [mean - spread, mean + spread]}


def metrics(steps: int = 5) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl: validation at the start and at the end."""
    lines: list[dict[str, Any]] = [{"meta_step": 0, "review_passes": 0}]
    lines += [
        {"meta_step": i, "review_passes": 1000 * i, "first_loss": 0.7, "last_loss": 0.5} for i in range(1, steps + 1)
    ]
    for line in (lines[0], lines[-1]):
        line["validation"] = {"before": point(0.5), "after": point(0.7, None)}
    return lines


CURVE = {name: {"steps": [0, 1, 20], "shots": [1, 2, 5], "balanced_accuracy": [point(0.5), point(0.6), point(0.9)]}
         for name in ("reptile", "joint", "a method of one's own")}  # fmt: skip
METHODS = {
    name: {"domains": {"$x_$ & <b>": {"balanced_accuracy": point(0.6)}, "music": {"balanced_accuracy": point(0.8)}}}
    for name in ("reptile", "joint")
}


@pytest.fixture(params=["learning", "steps", "shots", "domains"])
def figure(request: pytest.FixtureRequest) -> Iterator[Figure]:
    made = {
        "learning": lambda: plots.learning_curve({"reptile": metrics(), "joint": metrics()}),
        "steps": lambda: plots.accuracy_curve(CURVE, "steps", 10),
        "shots": lambda: plots.accuracy_curve(CURVE, "shots", 10),
        "domains": lambda: plots.domain_scores({k: METHODS[k] for k in METHODS}),
    }[request.param]()
    yield made
    plots.plt.close(made)


def test_figures_have_titles_axis_labels_with_units_and_legends(figure: Figure) -> None:
    for axes in figure.axes:
        assert axes.get_title()
        assert axes.get_ylabel().endswith(("[%]", "[nats]"))
        names_on_x = [tick.get_text() for tick in axes.get_xticklabels()][1:] == ["music"]
        assert axes.get_xlabel() or names_on_x  # the names of the domains speak for themselves
        legend = axes.get_legend() or figure.legends[0]
        assert legend is not None
        shown = " ".join(text.get_text() for text in legend.get_texts())
        assert "Reptile" in shown and "joint training" in shown
        handles, _ = axes.get_legend_handles_labels()
        assert len(legend.get_texts()) == len(handles)


def test_scores_are_drawn_in_percent_with_their_intervals() -> None:
    figure = plots.accuracy_curve({"reptile": CURVE["reptile"]}, "steps", 10)
    (axes,) = figure.axes
    assert axes.lines[0].get_ydata() == pytest.approx([50, 60, 90])
    corners = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (corners.min(), corners.max()) == pytest.approx((40, 100))
    plots.plt.close(figure)


def test_a_method_has_the_same_colour_in_every_figure() -> None:
    figures = [plots.learning_curve({"joint": metrics()}), plots.accuracy_curve({"joint": CURVE["joint"]}, "shots", 1)]
    assert {figure.axes[0].lines[0].get_color() for figure in figures} == {plots.COLOURS["joint"]}
    for figure in figures:
        plots.plt.close(figure)


def test_a_learner_without_meta_steps_has_no_curve_to_draw() -> None:
    figure = plots.learning_curve({"finetuned": metrics(0)})
    assert not figure.axes[0].lines and not figure.axes[1].lines
    plots.plt.close(figure)


def test_running_mean() -> None:
    assert plots.running_mean([1, 2, 3, 4], 2) == pytest.approx([1, 1.5, 2.5, 3.5])


def test_domains_with_signs_of_mathematics_can_be_drawn(tmp_path: Path) -> None:
    figure = plots.domain_scores(METHODS)
    figure.savefig(tmp_path / "a.png")
    plots.plt.close(figure)
