"""The benchmark measures what it says, and its page says what was measured."""

import json
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from bench import (  # noqa: E402
    Pair,
    check_flops,
    in_processes,
    same_theta,
    sampling,
    shares,
    train_until,
    world_bench,
)
from bench_report import other_machines, page, same_theta_table, write_tables  # noqa: E402
from stack import Stack  # noqa: E402


@pytest.mark.parametrize("padding", ["longest", "max_length"])
@pytest.mark.parametrize("shots, batch, steps", [(4, 3, 5), (2, 4, 3)])
def test_the_plain_way_gives_the_same_theta(bench, padding, shots, batch, steps):
    found = same_theta(bench, 2, padding, shots, 2, batch, steps)
    assert found["difference"] <= 1e-4
    assert found["ratio"]["min"] > 0


@pytest.mark.slow
def test_tasks_on_all_cores_have_the_directions_of_one_process():
    found = in_processes(world_bench(), 1, tasks=4)
    assert found["difference"] <= 1e-4 and found["ratio"]["median"] > 0


def test_a_difference_is_found(bench):
    pair = Pair(bench, 4, 2, 3, 5, "longest")
    pair.plain.inner_lr *= 1.01
    with pytest.raises(AssertionError, match="differ"):
        pair.compare(1)


@pytest.mark.parametrize("count", [1, 3])
def test_tasks_in_step_have_the_directions_of_one_by_one(bench, count):
    pair = Pair(bench, 4, 2, 3, 5, "longest")
    tasks = [pair.sampler[index] for index in range(count)]
    stack = Stack(bench, count, pair.config.training_loop(), 600, torch.float32)
    for _ in range(2):
        found = stack.directions(tasks)
        for place, task in enumerate(tasks):
            assert stack.same(found, place, pair.direction(task), task) <= 1e-4


def test_operations_are_those_that_torch_counts(bench, monkeypatch):
    check_flops(bench)
    monkeypatch.setattr("bench.flops_of", lambda bench, rows: 10**6)
    with pytest.raises(AssertionError, match="counts"):
        check_flops(bench)


def test_measurements_have_their_figures(bench, config, monkeypatch, tmp_path):
    monkeypatch.setattr("bench.Pair", lambda bench, *given: Pair(bench, 4, 2, 5, 5, "longest"))
    monkeypatch.setattr("bench.TaskSampler", lambda reviews, *given, **named: _small(reviews, **named))
    results = {"machine": {"cpu": "a processor"}, "tiny_shares": shares(bench, 2), "sampling": sampling(bench)}
    assert 0 < results["tiny_shares"]["rest"]["median"] < 1
    held = results["sampling"]["bytes_held_after"]
    assert held["1000"] - held["100"] < 10_000
    write_tables(results, tmp_path)
    assert "a processor" in (tmp_path / "RESULTS.md").read_text()


def _small(reviews, seed=0, in_turn=False):
    from metalib.tasks import TaskSampler

    return TaskSampler(reviews, 5, 2, seed, in_turn)


def test_training_stops_at_the_goal(bench, config):
    curve = train_until(bench, config, 2, goal=0.0, limit=6)
    assert [point["meta_steps"] for point in curve] == [0, 2]


def test_the_page_says_what_was_measured():
    results = json.loads((BENCHMARKS / "results.json").read_text())
    others = other_machines(BENCHMARKS)
    assert (BENCHMARKS / "RESULTS.md").read_text() == page(results, others)
    assert others and all(found["machine"]["cpu"] != results["machine"]["cpu"] for found in others.values())
    assert {axis for axis in results["tiny_lines"] if axis != "threads"} == {"tasks", "shots", "steps", "tokens"}
    assert (BENCHMARKS / "lines.png").exists()
    readme = (BENCHMARKS.parent / "README.md").read_text()
    block = readme.partition("<!-- benchmarks/results.json -->\n")[2].partition("<!-- end -->")[0]
    assert block == same_theta_table(results)
