"""The family of learners: second derivatives, the Reptile paper's expansion, comparisons, parts that adapt, saving."""

import itertools
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_learners import Points, Regression, a_task
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BartConfig,
    BartForSequenceClassification,
    pipeline,
)

from metalib.config import read_config
from metalib.inner import InnerLoop, adapt, minibatches, untouched
from metalib.learners import ANIL, FOMAML, LEARNERS, MAML, Matching, Prototypical, Reptile
from metalib.learners.metric import prototypes, scaled_cosine
from metalib.models import load_model
from metalib.parts import features, merge_lora
from metalib.plots import label
from metalib.runs import train
from metalib.tasks import Task
from metalib.training import extend_model
from metalib.weights import Weights

LABELS = ["negative", "positive"]
COMPARING = ["protonet", "matching", "siamese", "relation"]
LOOP = InnerLoop(steps=3, lr=0.1, batch_size=4, optimizer="sgd")


def a_model(bench, own=(), lora=False, double=True, frozen_layers=0):
    """A tiny model with its vector, at a point where gradients are not small and LoRA's B is not zero."""
    model, _ = load_model("tiny", bench.splits.train["text"], LABELS, frozen_layers=frozen_layers, max_length=48)
    extend_model(model, replace(bench.config, baselines=own, adapt="lora" if lora else "all", lora_rank=2))
    weights = Weights(model.double() if double else model)
    generator = torch.Generator().manual_seed(0)
    weights.flat.mul_(3).add_(0.02 * torch.randn(len(weights), generator=generator, dtype=weights.flat.dtype))
    return model, weights


# Gradients through the inner steps


@pytest.mark.parametrize("schedule", ["constant", "linear"])
@pytest.mark.parametrize("kind, adapts", [(MAML, "all"), (MAML, "head"), (MAML, "bias"), (MAML, "lora"), (ANIL, "all")])
def test_mamls_direction_is_minus_the_derivative_of_the_query_loss(bench, kind, adapts, schedule):
    """Against central differences of what `adapt`, which knows no second derivatives, makes of θ."""
    model, weights = a_model(bench, lora=adapts == "lora")
    lr = 0.01 if (kind, adapts) == (MAML, "all") else 0.1  # larger steps of everything amplify h beyond 1e-6
    loop = replace(LOOP, lr=lr, schedule=schedule, adapts=adapts)
    learner, reviews, task = kind(model, weights, loop, loop), bench.reviews["validation"], a_task(bench)
    theta = weights.snapshot()

    def query_loss(point: torch.Tensor) -> float:
        weights.restore(point)
        adapt(model, weights, reviews, task.support, learner.training_loop, (0, 1))
        with torch.no_grad():
            return model(**reviews.batch(task.query)).loss.item()

    direction, losses = learner.direction(reviews, task, (0, 1))
    first_order, _ = FOMAML(model, weights, learner.training_loop, loop).direction(reviews, task, (0, 1))
    assert losses[-1].item() == pytest.approx(query_loss(theta), rel=1e-9)
    generator = torch.Generator().manual_seed(1)
    towards = [torch.randn(len(weights), generator=generator, dtype=torch.float64) for _ in range(2)]
    for v in (*towards, direction):  # along the direction itself every part counts
        v = v / v.norm()
        expected = -(query_loss(theta + 1e-5 * v) - query_loss(theta - 1e-5 * v)) / 2e-5
        assert abs(direction @ v - expected) <= 1e-6 * direction.norm()
    assert abs(direction @ v - expected) <= 1e-6 * abs(expected)
    assert (direction - first_order).norm() > 1e-3 * direction.norm()  # what is tested is not FOMAML


class Half(nn.Module):
    """Rows of label 0 have a loss that is linear in w, the others one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.linspace(-1, 1, 4, dtype=torch.float64))

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor) -> SimpleNamespace:
        values = inputs @ self.w
        return SimpleNamespace(loss=torch.where(labels == 0, values, values.sin()).mean())


@pytest.mark.parametrize("linear", [True, False])
def test_fomaml_is_maml_where_the_support_loss_is_linear(linear):
    model, points = Half(), Points(16, 4)
    points.labels = torch.tensor([0 if linear else 1] * 8 + [1] * 8)
    weights = Weights(model)
    task = Task(np.arange(8), np.arange(8, 16), "", 0)
    first, second = (kind(model, weights, LOOP, LOOP).direction(points, task, (0,))[0] for kind in (FOMAML, MAML))
    assert torch.allclose(first, second, rtol=0, atol=1e-12) is linear
    assert first.norm() > 0.1


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_on_a_quadratic_each_step_of_maml_is_a_factor(schedule):
    """∇_θ = Π (I − α_i H) ∇_φ; FOMAML leaves the factors out."""
    model, points, k = Regression(5), Points(30, 5), 4
    weights = Weights(model)
    hessian = points.inputs[:20].T @ points.inputs[:20] / 20
    pull = points.inputs[:20].T @ points.labels[:20] / 20
    phi, factor = weights.snapshot(), torch.eye(5, dtype=torch.float64)
    for step in range(k):
        alpha = 0.3 * (1 - step / k) if schedule == "linear" else 0.3
        phi = phi - alpha * (hessian @ phi - pull)
        factor = factor @ (torch.eye(5, dtype=torch.float64) - alpha * hessian)
    at_phi = points.inputs[20:].T @ (points.inputs[20:] @ phi - points.labels[20:]) / 10
    loop = InnerLoop(steps=k, lr=0.3, batch_size=20, optimizer="sgd", schedule=schedule)
    task = Task(np.arange(20), np.arange(20, 30), "", 0)
    first, second = (kind(model, weights, loop, loop).direction(points, task, (0,))[0] for kind in (FOMAML, MAML))
    torch.testing.assert_close(first, -at_phi, rtol=0, atol=1e-12)
    torch.testing.assert_close(second, -factor @ at_phi, rtol=0, atol=1e-12)


class Curved(nn.Module):
    """A neuron with squared error: no derivative vanishes."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.linspace(-1, 1, 6, dtype=torch.float64))

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(loss=((inputs @ self.w).tanh() - labels).square().mean())


def orders(rows: int) -> list[int]:
    """One seed for each order of single rows."""
    found: dict[tuple[int, ...], int] = {}
    for seed in itertools.count():
        found.setdefault(tuple(int(cut[0]) for cut in minibatches(np.arange(rows), 1, rows, (seed,))), seed)
        if len(found) == len(list(itertools.permutations(range(rows)))):
            return list(found.values())
    raise AssertionError


@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("kind", [MAML, FOMAML, Reptile])
def test_the_coefficients_of_the_expansion(kind, k):
    """Nichol, Achiam & Schulman 2018, §5.1, averaged exactly: over all orders of k minibatches of one row each.

    MAML: AvgGrad − 2(k − 1)α AvgGradInner; FOMAML: AvgGrad − (k − 1)α AvgGradInner; both with the last minibatch as
    the query. Reptile, divided by −α: k AvgGrad − ½k(k − 1)α AvgGradInner.
    """
    model, points, alpha = Curved(), Points(k, 6), 1e-3
    weights = Weights(model)
    losses = [lambda w, x=x, y=y: ((x @ w).tanh() - y).square() for x, y in zip(points.inputs, points.labels)]  # noqa: B905
    gradients = [torch.func.grad(loss)(weights.flat) for loss in losses]
    hessians = [torch.func.hessian(loss)(weights.flat) for loss in losses]
    pairs = list(itertools.permutations(range(k), 2))
    average = torch.stack(gradients).mean(0)
    inner = torch.stack([hessians[i] @ gradients[j] for i, j in pairs]).mean(0)
    steps = k if kind is Reptile else k - 1
    loop = InnerLoop(steps=steps, lr=alpha, batch_size=1, optimizer="sgd")
    learner, rows = kind(model, weights, loop, loop), np.arange(k)
    if kind is Reptile:
        tasks, scale, expected = [Task(rows, rows[:0], "", 0)], -alpha, (k, -k * (k - 1) / 2)
    else:
        tasks = [Task(np.delete(rows, row), rows[[row]], "", 0) for row in rows]
        scale, expected = -1.0, (1, -(k - 1) * (2 if kind is MAML else 1))
    met = [learner.direction(points, task, (seed,))[0] for task in tasks for seed in orders(steps)]
    basis = torch.stack([average, alpha * inner], dim=1)
    found = torch.linalg.lstsq(basis, torch.stack(met).mean(0) / scale).solution
    assert found.tolist() == pytest.approx(expected, rel=0.05)


# Learners that compare


@pytest.fixture
def seen():
    """Features of 7 queries and 6 support texts, and these texts' classes, one-hot."""
    generator = torch.Generator().manual_seed(0)
    queries, support = (torch.randn(rows, 64, generator=generator) for rows in (7, 6))
    return queries, support, torch.eye(2)[[0, 1, 1, 0, 1, 1]]


def learner_of(bench, name, loop=LOOP):
    return LEARNERS[name](bench.model, bench.weights, loop, loop)


def test_a_learned_protonet_is_the_linear_classifier_of_its_prototypes(family):
    """softmax of the model's logits = softmax of −‖f − c_k‖², in float64."""
    model, weights = a_model(family)
    learner, reviews, task = Prototypical(model, weights, LOOP, LOOP), family.reviews["validation"], a_task(family)
    support, queries = (reviews.features(model, rows) for rows in (task.support, task.query))
    labels = torch.from_numpy(reviews.labels[task.support])
    centres = torch.stack([support[labels == k].mean(0) for k in (0, 1)])
    expected = (-torch.cdist(queries, centres).square()).softmax(-1)
    scores = learner.scores(queries, support, learner.one_hot(labels)).softmax(-1)
    learner.fit(reviews, task.support)
    with torch.no_grad():
        batch = reviews.batch(task.query)
        found = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.softmax(-1)
    assert expected.std(0).min() > 0.05 and expected.dtype == torch.float64
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    written = weights.flat[weights.slices["classifier.weight"]].view(2, -1)
    assert written.allclose(2 * (centres - centres.mean(0)), atol=1e-9)


def test_bfloat16_does_not_round_the_classes_of_a_protonet_together(family):
    """Features far from the origin and close to each other: scores of −‖c‖² ≈ −1000 would be rounded to multiples of 4.
    """
    model, weights = a_model(family)
    learner, generator = Prototypical(model, weights, LOOP, LOOP), torch.Generator().manual_seed(0)
    classes = learner.one_hot(torch.arange(40) % 2)
    support = 4 + 0.3 * torch.randn(2, 64, generator=generator)[torch.arange(40) % 2]
    queries = support + 0.3 * torch.randn(40, 64, generator=generator)
    learner.remember(support.double(), classes)
    low = [tensor.bfloat16() for tensor in (queries, model.classifier.weight, model.classifier.bias)]
    found, expected = nn.functional.linear(*low), learner.scores(queries, support, classes)
    assert (found.argmax(-1) == expected.argmax(-1)).all() and (found[:, 0] != found[:, 1]).all()
    torch.testing.assert_close(found.float().diff(dim=-1), expected.diff(dim=-1), rtol=0.05, atol=0.5)


def test_matching_mixes_the_classes_by_its_attention(family, seen):
    queries, support, classes = seen
    learner = learner_of(family, "matching")
    assert isinstance(learner, Matching)
    attention = learner.attention(queries, support)
    torch.testing.assert_close(attention.sum(-1), torch.ones(7))
    torch.testing.assert_close(learner.scores(queries, support, classes).softmax(-1), attention @ classes)
    centres = prototypes(support[:2], classes[:2])  # one shot: each class is its only example
    torch.testing.assert_close(centres, support[:2])
    one_shot = learner.scores(queries, support[:2], classes[:2])
    torch.testing.assert_close(one_shot, scaled_cosine(queries, centres))
    unit = [vectors / vectors.norm(dim=-1, keepdim=True) for vectors in (queries, centres)]
    torch.testing.assert_close(one_shot, unit[0] @ unit[1].T / 0.1)


def test_siamese_takes_the_class_of_the_nearest_pair(family, seen):
    queries, support, classes = seen
    learner = learner_of(family, "siamese")
    layer = family.model.own["siamese"]
    expected = ((queries[:, None] - support).abs() * layer.weight[0]).sum(-1) + layer.bias
    nearest = classes.argmax(-1)[expected.argmax(-1)]
    assert set(nearest.tolist()) == {0, 1}
    assert learner.scores(queries, support, classes).argmax(-1).tolist() == nearest.tolist()


def test_a_classifier_that_looks_for_the_texts_end_has_features():
    model = BartForSequenceClassification(BartConfig(
        vocab_size=30, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, num_labels=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=20))  # fmt: skip
    assert Matching.own_module(model.eval()) is None


def test_the_losses_of_siamese_and_relation_networks_by_hand(family, seen):
    queries, support, classes = seen
    labels = torch.tensor([0, 1, 1, 0, 1, 0, 0])
    siamese, relation = (learner_of(family, name) for name in ("siamese", "relation"))
    sure, same = siamese.pairs(queries, support).sigmoid(), labels[:, None] == classes.argmax(-1)
    expected = -torch.where(same, sure, 1 - sure).log().mean()
    torch.testing.assert_close(siamese.loss(queries, labels, support, classes), expected)
    expected = (relation.scores(queries, support, classes).sigmoid() - torch.eye(2)[labels]).square().mean()
    torch.testing.assert_close(relation.loss(queries, labels, support, classes), expected)


def test_anil_adapts_its_head_alone_at_the_test_too(bench):
    learner = learner_of(bench, "anil")
    with untouched(bench.model, bench.weights) as theta:
        learner.fit(bench.reviews["validation"], a_task(bench).support)
        moved = {name for name, place in bench.weights.slices.items() if (bench.weights.flat != theta)[place].any()}
    assert moved == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("name", COMPARING)
def test_the_order_of_the_support_set_does_not_matter(family, seen, name):
    queries, support, classes = seen
    learner, order = learner_of(family, name), torch.randperm(6, generator=torch.Generator().manual_seed(1))
    scores = learner.scores(queries, support, classes)
    torch.testing.assert_close(learner.scores(queries, support[order], classes[order]), scores)
    torch.testing.assert_close(learner.scores(queries, support, classes.flip(-1)), scores.flip(-1))
    assert not torch.allclose(learner.scores(queries, support, classes[[1, 0, 2, 3, 4, 5]]), scores)


@pytest.mark.parametrize("name", ["joint", *COMPARING])
def test_a_step_along_the_direction_lowers_the_loss_by_its_square(family, name):
    learner, weights, task = learner_of(family, name), family.weights, a_task(family)
    theta = weights.snapshot()

    def at(point: torch.Tensor) -> tuple[torch.Tensor, float]:
        weights.restore(point)
        direction, losses = learner.direction(family.reviews["validation"], task, (0,))
        return direction, losses[-1].item()

    direction, loss = at(theta)
    square = direction.square().sum().item()
    step = 2e-3 * loss / square
    assert (at(theta - step * direction)[1] - at(theta + step * direction)[1]) / 2 == pytest.approx(
        step * square, rel=0.05
    )
    for key, place in weights.slices.items():
        if key.startswith("own."):
            assert direction[place].any() == key.startswith(f"own.{name}."), key


# Parts that adapt


def may_move(name: str, adapts: str) -> bool:
    return not name.startswith("own.") and (
        name.startswith("classifier.")
        or (adapts == "bias" and name.endswith(".bias"))
        or (adapts == "lora" and ".lora_" in name)
    )


@pytest.mark.parametrize("adapts", ["head", "bias", "lora"])
def test_only_the_part_moves_and_all_is_learned(bench, adapts):
    model, weights = a_model(bench, own=("siamese", "relation"), lora=True)
    loop = replace(LOOP, adapts=adapts)
    task, reviews = a_task(bench), bench.reviews["validation"]
    along, _ = Reptile(model, weights, loop, loop).direction(reviews, task, (0,))
    first, _ = FOMAML(model, weights, loop, loop).direction(reviews, task, (0,))
    for name, place in weights.slices.items():
        assert bool(along[place].any()) == may_move(name, adapts), name
        if not name.startswith("own."):
            assert first[place].any(), name
    outside = [place for name, place in weights.slices.items() if not may_move(name, adapts)]
    assert torch.cat([first[place] for place in outside]).norm() > 0.01 * first.norm()


@pytest.mark.parametrize("adapts", ["head", "bias", "lora"])
def test_what_needs_gradients_is_the_same_after_an_exception(bench, adapts):
    model, weights = a_model(bench, lora=True, frozen_layers=1)
    before = [parameter.requires_grad for parameter in model.parameters()]
    assert len(set(before)) == 2

    def fail(step: int) -> None:
        if step == 1:
            assert [parameter.requires_grad for parameter in model.parameters()] != before
            raise KeyError

    with pytest.raises(KeyError):
        adapt(model, weights, bench.reviews["validation"], np.arange(8), replace(LOOP, adapts=adapts), (0,), fail)
    assert [parameter.requires_grad for parameter in model.parameters()] == before


def test_frozen_layers_learn_their_low_rank_updates_only(bench):
    weights = a_model(bench, lora=True, frozen_layers=2)[1]
    rest = {name for name in weights.slices if ".lora_" not in name}
    pooler = {f"bert.pooler.dense.base_layer.{name}" for name in ("weight", "bias")}  # it belongs to no layer
    assert rest == {"classifier.weight", "classifier.bias", *pooler}
    assert sum("layer.0" in name for name in weights.slices) == 2 * 6  # A and B of each of a layer's matrices


def test_merged_low_rank_updates_are_an_ordinary_classifier(bench, tmp_path):
    model, weights = a_model(bench, lora=True, double=False)
    reviews, rows = bench.reviews["test"], np.arange(10)
    logits = reviews.logits(model, rows)
    merged = merge_lora(model)
    torch.testing.assert_close(reviews.logits(merged, rows), logits, rtol=0, atol=1e-5)
    assert any("lora" in name for name in model.state_dict()) and not any("lora" in n for n in merged.state_dict())
    for name, place in weights.slices.items():
        if ".lora_B" in name:
            weights.flat[place] = 0
    assert (reviews.logits(model, rows) - logits).abs().max() > 0.01  # the updates were not nothing
    torch.testing.assert_close(reviews.logits(merged, rows), logits, rtol=0, atol=1e-5)  # a copy of its own
    Reptile(merged, Weights(merged), LOOP, LOOP).save(tmp_path)
    bench.tokenizer.save_pretrained(tmp_path)
    opened, met = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not met["missing_keys"] and not met["unexpected_keys"]
    torch.testing.assert_close(reviews.logits(opened, rows), logits, rtol=0, atol=1e-5)
    said = pipeline("text-classification", model=str(tmp_path), top_k=None)(bench.splits.test["text"][:1])[0]
    scores = {each["label"]: each["score"] for each in said}
    assert [scores[label] for label in LABELS] == pytest.approx(logits[0].softmax(-1).tolist(), abs=1e-5)


# What is saved


@pytest.mark.parametrize("name", LEARNERS)
def test_what_is_saved_opens_again(family, tmp_path, name):
    learner, reviews, task = learner_of(family, name), family.reviews["validation"], a_task(family)
    with untouched(family.model, family.weights):
        learner.fit(reviews, task.support)
        learner.save(tmp_path)
        kind = AutoModelForSequenceClassification if learner.is_classifier else AutoModel
        opened, met = kind.from_pretrained(tmp_path, output_loading_info=True)
        assert not met["missing_keys"] and not met["unexpected_keys"]
        assert (tmp_path / "learner.safetensors").exists() != learner.is_classifier
        if learner.is_classifier:
            assert torch.equal(reviews.logits(opened, task.query), learner.logits(reviews, task.query))
            return
        batch = reviews.batch(task.query)
        batch.pop("labels")
        with torch.no_grad():
            assert torch.equal(opened(**batch)[0], family.model.base_model(**batch)[0])
        saved = load_file(tmp_path / "learner.safetensors")
        torch.testing.assert_close(saved["support"], features(family.model, reviews.batch(task.support)).detach())
        assert saved["classes"].argmax(-1).tolist() == reviews.labels[task.support].tolist()
        for key, tensor in family.model.state_dict().items():
            if key.startswith(f"own.{name}."):
                assert torch.equal(saved[key], tensor)


# The run of all of them


@pytest.mark.slow
def test_the_familys_settings_work_from_end_to_end(config, reviews, tmp_path):
    (tmp_path / "reviews.json").write_text(json.dumps(reviews.to_list()))
    settings = read_config("configs/family.yaml")
    small = ("meta_batch", "max_length", "eval_episodes", "validation_episodes", "validation_domains", "test_domains",
             "train_shots", "shots", "queries", "adapt_steps", "inner_steps")  # fmt: skip
    settings = replace(settings, **{name: getattr(config, name) for name in small}, data=str(tmp_path / "reviews.json"),
                       meta_steps=1, validations=1, out=str(tmp_path / "run"))  # fmt: skip
    folder = train(settings)
    methods = json.loads((folder / "evaluation.json").read_text())["methods"]
    pairs = {(p["a"], p["b"]) for p in json.loads((folder / "evaluation.json").read_text())["paired"]}
    for name in LEARNERS:
        if name in ("reptile", *settings.baselines):
            assert 0 <= methods[name]["overall"]["balanced_accuracy"]["mean"] <= 1
        if name in ("reptile", *settings.baselines) and name != "finetuned":
            assert f"untrained_{name}" in methods
            assert any({name, f"untrained_{name}"} == set(pair) for pair in pairs), pairs
    report = (folder / "report.md").read_text()
    assert all(f"| {label(name)} |" in report for name in ("reptile", *settings.baselines))
    assert (folder / "learning_curve.png").stat().st_size > 0
