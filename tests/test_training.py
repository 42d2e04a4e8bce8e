"""Law 3 and 5 in the outer loop: its equation, its metrics, killed and resumed, and losses that are not finite."""

import json
import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from metalib.checkpoint import load_checkpoint
from metalib.config import Config
from metalib.errors import BadInput, MetalibError, NotFinite
from metalib.inner import adapt, untouched
from metalib.learners import Learner, Reptile
from metalib.models import TokenizedReviews
from metalib.processes import make_accelerator
from metalib.tasks import TaskSampler, hash_tasks
from metalib.training import annealed, check_finite, meta_train, prepare, sum_directions, training_tasks
from metalib.weights import Kept, Weights

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "notebooks"))

import teaching
from teaching import peak_memory


class Killed(BaseException):
    pass


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def train(bench, config: Config, folder: Path, on_metrics=None) -> torch.Tensor:
    meta_train(bench, config, folder, on_metrics)
    return bench.weights.snapshot()


@pytest.mark.parametrize("name", ["reptile", "joint"])
def test_epsilon_0_changes_nothing(bench, config, tmp_path, name):
    still = replace(config, learner=name, epsilon=0.0, epsilon_final=0.0, meta_steps=2)
    assert torch.equal(train(bench, still, tmp_path), bench.theta_0)
    assert lines_of(tmp_path)[2]["direction_norm"] > 0


def test_epsilon_1_with_one_task_gives_phi(bench, config, tmp_path):
    whole = replace(config, meta_batch=1, meta_steps=1, epsilon=1.0, epsilon_final=1.0)
    task = TaskSampler(bench.splits.train, whole.train_shots, 0, whole.seed)[0]
    with untouched(bench.model, bench.weights):
        adapt(bench.model, bench.weights, bench.reviews["train"], task.support, whole.training_loop(), (whole.seed, 0))
        phi = bench.weights.snapshot()
    theta = train(bench, whole, tmp_path)
    assert (phi - bench.theta_0).abs().max() > 1e-3
    torch.testing.assert_close(theta, phi, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("tasks", [1, 5])
def test_a_meta_step_takes_three_vectors_beside_its_inner_loops_however_many_tasks(bench, config, monkeypatch, tasks):
    """θ, which becomes the displacement, and their sum in float64."""
    monkeypatch.setattr("metalib.weights.CHUNK", 1000)
    layer = nn.Linear(1000, 300)
    weights = Weights(layer)
    learner = Reptile(layer, weights, config.training_loop(), config.adaptation_loop())
    sampler = TaskSampler(bench.splits.train, config.train_shots, 0)

    def move(*_: object) -> torch.Tensor:
        weights.flat += 1
        return torch.ones(1)

    monkeypatch.setattr("metalib.learners.gradient.adapt", move)

    found = []
    peak = peak_memory(lambda: found.extend(
        sum_directions(learner, bench.reviews["train"], sampler, tasks, 0, bench.accelerator)
    ))  # fmt: skip
    assert (found[0] - 1).abs().max() < 1e-6
    assert 3 * weights.flat.nbytes <= peak < 3.1 * weights.flat.nbytes


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_where_theta_0_cannot_be_kept_the_error_says_so_and_what_to_do(bench, monkeypatch):
    monkeypatch.setattr("metalib.weights.TemporaryFile", partial(open, "/dev/full", "wb"))
    with pytest.raises(MetalibError, match=r"MiB of first weights cannot be kept .*TMPDIR=/path"):
        Kept(bench.weights.flat)


def test_the_outer_update_is_the_papers_computed_by_hand(bench, config, tmp_path):
    """θ ← θ + ε · mean(φᵢ − θ), for two meta-steps of three tasks, with ε from 0.5 to 0.2."""
    config = replace(config, seed=3, meta_batch=3, meta_steps=2, epsilon=0.5, epsilon_final=0.2)
    sampler = TaskSampler(bench.splits.train, config.train_shots, 0, config.seed)
    theta = bench.theta_0.double()
    for epsilon, indices in ((0.5, (0, 1, 2)), (0.2, (3, 4, 5))):
        bench.weights.restore(theta)
        phis = []
        for index in indices:
            with untouched(bench.model, bench.weights):
                rows, seed = sampler[index].support, (config.seed, index)
                adapt(bench.model, bench.weights, bench.reviews["train"], rows, config.training_loop(), seed)
                phis.append(bench.weights.flat.double())
        theta = (1 - epsilon) * theta + epsilon * sum(phis) / 3
    found = train(bench, config, tmp_path)
    assert (theta - bench.theta_0).abs().max() > 1e-3
    torch.testing.assert_close(found.double(), theta, rtol=0, atol=1e-6)
    tasks = [sampler[index] for index in (3, 4, 5)]
    assert lines_of(tmp_path)[2]["tasks"] == hash_tasks(tasks, bench.splits.train["text"])


def test_joint_training_is_adam_on_the_mean_gradient(bench, config, tmp_path):
    joint = replace(config, learner="joint", meta_steps=3, epsilon=1e-2, epsilon_final=1e-2)
    sampler = TaskSampler(bench.splits.train, joint.train_shots, 0, joint.seed)
    theta = torch.nn.Parameter(bench.theta_0.clone())
    adam = torch.optim.Adam([theta], lr=1e-2)
    for step in range(3):
        bench.weights.restore(theta.detach())
        bench.weights.grad.zero_()
        for place in range(joint.meta_batch):
            batch = bench.reviews["train"].batch(sampler[step * joint.meta_batch + place].support)
            (bench.model(**batch).loss / joint.meta_batch).backward()
        theta.grad = bench.weights.grad.clone()
        adam.step()
    found = train(bench, joint, tmp_path)
    # Adam divides by the gradient's size: where that is as small as its rounding, so is what can be compared.
    assert (found - theta.detach()).abs().median() < 1e-6
    assert (found - theta.detach()).norm() < 1e-2 * (theta.detach() - bench.theta_0).norm()


def test_epsilon_goes_in_a_straight_line_from_its_first_to_its_last_value(config):
    def steps(kind: str, **settings: float) -> list[float]:
        return [annealed(replace(config, meta_steps=5, **settings), kind, step) for step in range(5)]

    assert steps("sgd") == pytest.approx([1.0, 0.775, 0.55, 0.325, 0.1])
    assert steps("adam") == pytest.approx([1e-3, 7.75e-4, 5.5e-4, 3.25e-4, 1e-4])
    assert steps("sgd", epsilon=0.5, epsilon_final=0.0) == pytest.approx([0.5, 0.375, 0.25, 0.125, 0.0])
    assert annealed(replace(config, meta_steps=1, epsilon=0.5), "sgd", 0) == 0.5


def count_passes(bench, config: Config, folder: Path) -> int:
    """Reviews that really went forward and backward."""
    seen = []
    handle = bench.model.register_forward_pre_hook(
        lambda module, _, inputs: seen.append(len(inputs["labels"])) if torch.is_grad_enabled() else None,
        with_kwargs=True,
    )
    try:
        meta_train(bench, config, folder)
    finally:
        handle.remove()
    return sum(seen)


@pytest.mark.parametrize(("learner", "inner_batch"), [("reptile", 4), ("joint", 4), ("reptile", 5)])
def test_metrics_have_a_line_a_step_and_the_review_passes_that_were_made(bench, config, tmp_path, learner, inner_batch):
    config = replace(config, learner=learner, inner_batch=inner_batch)  # of 12 support reviews
    passes = count_passes(bench, config, tmp_path)
    lines = lines_of(tmp_path)
    assert [line["meta_step"] for line in lines] == [0, 1, 2, 3, 4, 5, 6]
    assert [line["meta_step"] for line in lines if "validation" in line] == [0, 3, 6]
    assert lines[0]["review_passes"] == 0
    # `passes` holds those of validating too: 3 scorings of 3 episodes of 3 steps of 5 reviews
    assert lines[-1]["review_passes"] == passes - 3 * 3 * 3 * 5


def test_metrics_hold_no_clock_times(bench, config, tmp_path):
    one, other = (train(bench, config, tmp_path / name) for name in ("one", "other"))
    assert torch.equal(one, other)
    contents = {(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("one", "other")}
    assert len(contents) == 1


@pytest.mark.parametrize("name", ["reptile", "joint"])
def test_killed_and_resumed_is_never_killed(bench, config, tmp_path, name):
    """Bit for bit; the checkpoint (3) is between two validations (2, 4), and the run is killed after it (4)."""
    config = replace(config, learner=name, validations=3, dropout=True)
    never = train(bench, config, tmp_path / "never")

    def kill(line: dict) -> None:
        if line["meta_step"] == 4:
            raise Killed

    with pytest.raises(Killed):
        train(bench, config, tmp_path / "killed", kill)
    assert len(lines_of(tmp_path / "killed")) == 5
    bench.weights.flat.zero_()  # a new process knows nothing
    bench.weights.grad.zero_()
    torch.manual_seed(5)
    resumed = train(bench, replace(config, resume=True), tmp_path / "killed")
    assert torch.equal(resumed, never)
    metrics = [(tmp_path / run / "metrics.jsonl").read_bytes() for run in ("never", "killed")]
    assert metrics[0] == metrics[1]
    checkpoints = [load_checkpoint(tmp_path / run / "checkpoint") for run in ("never", "killed")]
    assert [done for done, _ in checkpoints] == [6, 6]
    assert all(torch.equal(tensor, checkpoints[1][1][key]) for key, tensor in checkpoints[0][1].items())


def test_resuming_a_finished_run_changes_nothing_and_trains_nothing(bench, config, tmp_path):
    theta = train(bench, config, tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    assert torch.equal(train(bench, replace(config, resume=True), tmp_path, lambda line: pytest.fail(str(line))), theta)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_loss_that_is_not_finite_stops_the_run_and_names_meta_step_and_task(bench, config, tmp_path):
    with pytest.raises(NotFinite, match=r"meta-step 1, task 0 \(domain '(baby|dvd|music)'\) — lower inner_lr"):
        train(bench, replace(config, inner_lr=1e30), tmp_path)


def test_a_loss_that_is_not_finite_leaves_the_last_checkpoint(bench, config, tmp_path):
    good = []

    def poison(line: dict) -> None:
        good.append(bench.weights.snapshot())
        if line["meta_step"] == 4:
            bench.weights.flat[0] = float("nan")

    with pytest.raises(NotFinite, match="meta-step 5, task 8"):
        train(bench, replace(config, validations=0), tmp_path, poison)
    done, tensors = load_checkpoint(tmp_path / "checkpoint")
    assert done == 3
    assert torch.equal(tensors["theta"], good[3])
    assert len(lines_of(tmp_path)) == 5


def test_weights_that_are_not_finite_after_the_last_step_are_not_saved(bench, config, tmp_path):
    with pytest.raises(NotFinite, match="weights are not finite after meta-step 1"):
        train(bench, replace(config, meta_steps=1, epsilon=1e300, validations=0), tmp_path)
    assert load_checkpoint(tmp_path / "checkpoint") is None


def test_training_and_its_curve_do_not_look_at_the_test_domains(bench, config, tmp_path):
    class Poison:
        def __getattr__(self, name):
            raise AssertionError(f"the test domains were looked at: {name}")

        __len__ = __getitem__ = __iter__ = lambda self, *_: self.looked_at

    blind = replace(bench, splits=replace(bench.splits, test=Poison()), reviews={**bench.reviews, "test": Poison()})
    train(blind, config, tmp_path)
    assert sum("validation" in line for line in lines_of(tmp_path)) > 1


def test_a_loss_that_is_not_finite_on_the_way_is_found(bench):
    class Stumbling(Learner):
        def direction(self, reviews, task, seed):
            losses = [1.0, float("inf"), 1.0] if task.index == 5 else [1.0, 1.0, 1.0]
            return torch.zeros(len(self.weights)), torch.tensor(losses)

    sampler = TaskSampler(bench.splits.train, 2, 0)
    learner = Stumbling(bench.model, bench.weights, None, None)
    for step in (0, 1):
        _, losses = sum_directions(learner, bench.reviews["train"], sampler, 4, step, bench.accelerator)
        if step == 0:
            check_finite(losses, sampler, step)
    with pytest.raises(NotFinite, match="meta-step 2, task 5"):
        check_finite(losses, sampler, 1)


@pytest.mark.parametrize(("inner_steps", "train_shots"), [(10, 40), (7, 20), (1, 50)])
def test_joint_training_gets_as_many_review_passes(config, inner_steps, train_shots):
    config = replace(config, inner_steps=inner_steps, inner_batch=10, train_shots=train_shots, meta_steps=300)
    joint = config.for_learner("joint")
    passes, rivals = (each.meta_steps * each.passes_per_step() for each in (config, joint))
    assert abs(passes - rivals) <= joint.passes_per_step() / 2
    assert np.isclose(passes, 300 * config.meta_batch * inner_steps * 10)


def test_frozen_parameters_stay_as_they_are_in_training(config, splits, tmp_path):
    bench = prepare(replace(config, frozen_layers=1), splits, make_accelerator())
    before = {name: parameter.detach().clone() for name, parameter in bench.model.named_parameters()}
    train(bench, replace(config, meta_steps=1, validations=0), tmp_path)
    for name, parameter in bench.model.named_parameters():
        assert torch.equal(parameter, before[name]) == (not parameter.requires_grad), name


@pytest.mark.parametrize("what", ["nothing", "trained weights", "frozen weights", "tokens"])
def test_a_training_goes_on_with_the_model_it_began_with(config, splits, tmp_path, what):
    frozen = replace(config, frozen_layers=1, meta_steps=1, validations=0)
    bench = prepare(frozen, splits, make_accelerator())
    bench.config = replace(frozen, model="that was loaded")
    meta_train(bench, frozen, tmp_path)
    reviews = dict(bench.reviews)
    if what == "tokens":
        reviews["train"] = TokenizedReviews(splits.train, bench.tokenizer, 20)
    for parameter in bench.model.parameters():
        if what.endswith("weights"):
            parameter.data += 0.1 * (parameter.requires_grad == (what == "trained weights"))
    again = replace(bench, reviews=reviews)
    with nullcontext() if what in ("nothing", "trained weights") else pytest.raises(BadInput, match="another model"):
        meta_train(again, replace(frozen, meta_steps=2, resume=True), tmp_path)


def test_a_direction_of_another_shape_is_named(bench, config, monkeypatch):
    learner, sampler = bench.learner(config), training_tasks(config, bench.splits.train)
    monkeypatch.setattr(learner, "direction", lambda *_: (torch.zeros(5), torch.zeros(1)))
    size = len(bench.weights)
    with pytest.raises(MetalibError, match=rf"reptile: its direction has the shape \(5,\), not \({size},\)"):
        sum_directions(learner, bench.reviews["train"], sampler, 2, 0, bench.accelerator)


def test_a_notebook_finds_the_run_that_it_left_the_last_time(bench, config, tmp_path, monkeypatch):
    monkeypatch.setattr(teaching, "course_path", lambda *_: tmp_path)
    left = []
    for _ in range(2):
        assert teaching.course_folder(replace(bench, config=replace(config, meta_steps=1)), "reptile") == tmp_path
        left.append({path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()})
    assert left[0] == left[1] and {"config.yaml", "metrics.jsonl", "model.safetensors"} <= left[0].keys()
