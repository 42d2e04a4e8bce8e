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
    begin,
    check_flops,
    in_processes,
    in_step,
    machine,
    main,
    same_theta,
    sampling,
    shares,
    train_until,
    what_pays,
    world_bench,
)
from bench_report import met, other_machines, page, same_theta_table, write_tables  # noqa: E402
from gpu import main as gpu_main  # noqa: E402
from stack import Stack  # noqa: E402

from metalib import fast, models  # noqa: E402


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


def test_the_gpus_benchmark_is_tried_on_a_cpu_without_touching_what_a_gpu_gave(monkeypatch, tmp_path):
    monkeypatch.setattr("gpu.GROUPS", 1)
    monkeypatch.setattr("gpu.LEAST", 1)
    monkeypatch.setattr("gpu.__file__", str(tmp_path / "benchmarks" / "gpu.py"))
    gpu_main(sizes=("tiny",), at_a_time=(1, 2), max_length=32, batches=(10,))
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    rows = json.loads((tmp_path / "runs" / "bench" / "results.json").read_text())["gpu"]["rows"]
    assert [(row["way"], row["at_a_time"]) for row in rows] == [("library", 1), ("stack", 1), ("stack", 2)]
    assert all(row["all"]["tasks_per_second"] > 0 and row["difference"] < 1e-3 for row in rows)
    assert (tmp_path / "runs" / "bench" / "RESULTS.md").read_text().count("| tiny | ") == 3


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
    results = {"machine": {"cpu": "a processor"}, "tiny_shares": shares(bench, 2), "sampling": sampling(bench),
               "minilm_what_pays_64": what_pays(lambda: bench, 1), "tiny_in_step": in_step(bench, 1, 2)}  # fmt: skip
    assert 0 < results["tiny_shares"]["rest"]["median"] < 1
    held = results["sampling"]["bytes_held_after"]
    assert held["1000"] - held["100"] < 10_000
    assert results["tiny_in_step"]["ratio"]["all"] > 0
    write_tables(results, tmp_path)
    text = (tmp_path / "RESULTS.md").read_text()
    assert "a processor" in text and "2 tasks one by one" in text and "seconds with padding computed" in text


def test_what_pays_is_taken_away(bench, monkeypatch):
    monkeypatch.setattr("bench.Pair", lambda bench, *given: Pair(bench, 4, 2, 5, 5, "longest"))
    packed, saved = [], []
    monkeypatch.setattr("metalib.fast.word_table", lambda *given: saved.append(fast.WORTH_IT) or ("", None))
    what_pays(lambda: packed.append(models.pack is fast.pack) or bench, 1)
    assert packed == [False, True]
    assert saved == [1_000_000, 1_000_000, float("inf"), 1_000_000] * 2


def test_rows_of_two_machines_are_not_mixed(tmp_path):
    out, here = tmp_path / "results.json", {"cpu": "this one", "cores": 2, "threads": 1}
    assert begin(out, here, goes_on=True) == {}
    before = {"machine": {**here, "threads": 2}, "import": {}, "gpu": {"name": "one"}}
    out.write_text(json.dumps(before))
    assert begin(out, here, goes_on=True) == before
    assert begin(out, here, goes_on=False) == {"gpu": {"name": "one"}}
    with pytest.raises(SystemExit, match="another cpu"):
        begin(out, {**here, "cpu": "another"}, goes_on=True)


def test_only_a_whole_measurement_goes_into_the_projects_page(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.measurements", lambda data, model: {"machine": machine, "import": lambda: {"a": 1}})
    monkeypatch.setattr("bench_report.page", lambda results, others: "a page")
    monkeypatch.setattr("bench.HERE", tmp_path / "benchmarks")
    monkeypatch.setattr("torch.set_num_threads", lambda threads: None)  # the other tests keep theirs
    monkeypatch.setattr("datasets.disable_progress_bars", lambda: None)
    main()
    assert not (tmp_path / "benchmarks").exists()
    found = json.loads((tmp_path / "runs" / "bench" / "results.json").read_text())
    assert found["import"]["a"] == 1 and found["import"].keys() == {"threads", "commit", "a"}
    main("reviews.json", "encoder")
    assert (tmp_path / "benchmarks" / "RESULTS.md").read_text() == "a page"


@pytest.mark.parametrize("goal, value, word", [("≥ 6", 6.1, "yes"), ("≥ 6", 5.9, "no"), ("≤ 5, flat", 4.5, "yes"),
                                               ("≥ 20×", 3, "no"), ("≥ 2,000", 1999, "no"), ("", 1, ""),
                                               ("stated", 1, ""), ("< 0.3", 0.1, "yes")])  # fmt: skip
def test_a_goal_is_met_or_not(goal, value, word):
    assert met(goal, value) == word


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
    assert {"tasks", "shots", "steps", "tokens"} == results["tiny_lines"].keys() - {"threads", "commit"}
    assert (BENCHMARKS / "lines.png").exists()
    readme = (BENCHMARKS.parent / "README.md").read_text()
    block = readme.partition("<!-- benchmarks/results.json -->\n")[2].partition("<!-- end -->")[0]
    assert block == same_theta_table(results)
