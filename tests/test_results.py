"""The numbers in the README are those of the files in results/, and these say what they were made with."""

import json
import re
from pathlib import Path

import pytest

from metalib.config import read_config
from metalib.evaluation import winner
from metalib.report import gains_table, over_seeds, scores_table

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SEEDS = sorted((ROOT / "results" / "world").glob("seed-*"))


def block(name: str) -> str:
    """What stands in the README between the marks of one results file."""
    found = re.search(rf"<!-- {re.escape(name)} -->\n(.*?)<!-- end -->", README, re.DOTALL)
    assert found, f"README.md has no block for {name}"
    return found[1].strip()


def test_the_world_table_of_the_readme_is_that_of_the_three_committed_runs() -> None:
    assert len(SEEDS) == 3
    table = over_seeds(SEEDS).strip()
    assert table == (ROOT / "results" / "world" / "seeds.md").read_text(encoding="utf-8").strip()
    assert block("results/world/seeds.md") == table


@pytest.mark.parametrize("folder", SEEDS, ids=lambda folder: folder.name)
def test_a_committed_run_used_the_settings_of_the_config_that_the_readme_names(folder: Path) -> None:
    used, shipped = read_config(folder / "config.yaml"), read_config(ROOT / "configs" / "world.yaml")
    differ = {key for key in vars(used) if vars(used)[key] != vars(shipped)[key]}
    assert differ <= {"seed", "out", "resume"}


def test_reptile_is_well_above_joint_training_and_near_the_best_possible_in_the_committed_runs() -> None:
    runs = [json.loads((folder / "evaluation.json").read_text(encoding="utf-8")) for folder in SEEDS]
    for run in runs:
        assert run["episodes"]["count"] >= 200
        pairs = {pair["b"]: pair for pair in run["paired"] if pair["metric"] == "balanced_accuracy"}
        assert pairs["joint"]["difference"] >= 0.08 and pairs["joint"]["ci95"][0] > 0
        assert pairs["finetuned"]["difference"] >= 0.15
    gaps = [
        run["methods"]["best_possible"]["overall"]["balanced_accuracy"]["mean"]
        - run["methods"]["reptile"]["overall"]["balanced_accuracy"]["mean"]
        for run in runs
    ]
    assert sum(gaps) / len(gaps) <= 0.06


def test_the_cost_table_of_the_readme_is_that_of_the_command() -> None:
    intro, table = (ROOT / "results" / "costs.md").read_text(encoding="utf-8").split("\n\n", 1)
    assert block("results/costs.md") == table.strip()
    assert intro in " ".join(README.split())


def test_the_amazon_table_of_the_readme_is_that_of_the_committed_run() -> None:
    evaluation = json.loads((ROOT / "results" / "amazon" / "evaluation.json").read_text(encoding="utf-8"))
    assert block("results/amazon/evaluation.json") == scores_table(evaluation).strip()


def test_the_differences_that_the_readme_tells_of_the_amazon_run_are_those_of_its_file() -> None:
    evaluation = json.loads((ROOT / "results" / "amazon" / "evaluation.json").read_text(encoding="utf-8"))
    pairs = {pair["b"]: pair for pair in evaluation["paired"] if pair["metric"] == "balanced_accuracy"}
    gain, other = pairs["finetuned"], pairs["joint"]
    low, high = (round(100 * end) for end in gain["ci95"])
    assert (
        f"{100 * gain['difference']:.0f} points over the same classifier without it "
        f"(paired 95% interval {low} to {high})"
        in (" ".join(README.split()))
    )
    numbers = (f"{100 * value:.1f}".replace("-", "−") for value in (other["difference"], *other["ci95"]))
    assert "no difference to be seen ({}, {} to {})".format(*numbers) in " ".join(README.split())


def test_the_family_table_of_the_readme_is_that_of_the_committed_run_and_every_learner_gained() -> None:
    evaluation = json.loads((ROOT / "results" / "family" / "evaluation.json").read_text(encoding="utf-8"))
    assert block("results/family/evaluation.json") == gains_table(evaluation).strip()
    gains = [pair for pair in evaluation["paired"]
             if pair["b"] == f"untrained_{pair['a']}" and pair["metric"] == "balanced_accuracy"]  # fmt: skip
    assert len(gains) == 9 and all(pair["ci95"][0] > 0 for pair in gains)


@pytest.mark.parametrize("name", ["family", "phase"])
def test_the_committed_results_of_the_family_used_its_config(name: str) -> None:
    used, shipped = (read_config(path) for path in (ROOT / "results" / name / "config.yaml",
                                                    ROOT / "configs" / f"{name}.yaml"))  # fmt: skip
    assert {key for key in vars(used) if vars(used)[key] != vars(shipped)[key]} <= {"out", "resume"}


def test_what_the_readme_says_of_the_phase_diagram_is_what_its_file_says() -> None:
    cells = json.loads((ROOT / "results" / "phase" / "phase.json").read_text(encoding="utf-8"))["cells"]
    best: dict[str, set[tuple[float, float]]] = {}
    for cell in cells:
        best.setdefault(winner(cell)[0], set()).add((cell["conflict"], cell["cue"]))
    sure = sum(winner(cell)[0] != "joint" for cell in cells)
    words = " ".join(README.split())
    assert f"In {sure} of the {len(cells)} cells a learner is surely above joint training" in words
    low = [cell for cell in cells if cell["cue"] == 0 and cell["conflict"] <= 0.4]
    assert low and all(winner(cell)[0] == "joint" for cell in low)
    high = [cell for cell in cells if cell["cue"] == 0 and cell["conflict"] >= 0.75]
    assert high and all(winner(cell)[0] == "reptile" for cell in high)
    reptile = [pair["difference"] for cell in high for pair in cell["paired"]
               if (pair["a"], pair["b"]) == ("reptile", "joint")]  # fmt: skip
    assert f"by {100 * min(reptile):.0f} to {100 * max(reptile):.0f} points" in words
    metric = {(cell["conflict"], cell["cue"]) for cell in cells if winner(cell)[0] in ("matching", "protonet")}
    assert metric == {(0.75, 1.0)}
