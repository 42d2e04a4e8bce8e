"""Everything that is learned is one vector, and the modules' parameters are views into it."""

import copy

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM

from metalib.weights import Weights


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 3)).double()


def problem(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(batch)
    inputs = torch.randn(8, 4, dtype=torch.float64, generator=generator)
    return inputs, torch.randint(3, (8,), generator=generator)


def loss_of(model: nn.Module, batch: int) -> torch.Tensor:
    inputs, classes = problem(batch)
    return nn.functional.cross_entropy(model(inputs), classes)


def test_making_the_vector_does_not_change_what_the_model_says():
    model, plain = network(), network()
    Weights(model)
    assert torch.equal(model(problem(0)[0]), plain(problem(0)[0]))


def test_writing_into_the_vector_writes_into_the_modules_and_back():
    model, other = network(0), network(1)
    weights = Weights(model)
    weights.restore(Weights(other).flat)
    assert torch.equal(model(problem(0)[0]), other(problem(0)[0]))
    with torch.no_grad():
        model[3].bias.fill_(5)
    assert torch.equal(weights.flat[weights.slices["3.bias"]], torch.full((3,), 5.0, dtype=torch.float64))


def test_a_snapshot_stays_where_it_was_taken_and_restore_leads_back_there():
    weights = Weights(network())
    before = weights.snapshot()
    weights.flat += 1
    assert (weights.flat - before - 1).abs().max() < 1e-12
    weights.restore(before)
    weights.flat[0] += 1
    assert before[0] == weights.flat[0] - 1  # `before` did not become the vector itself


def test_an_exchange_leads_back_and_leaves_the_displacement(monkeypatch):
    monkeypatch.setattr("metalib.weights.CHUNK", 7)
    weights = Weights(network())
    theta = weights.snapshot()
    point = weights.vector().copy_(theta)
    phi = weights.flat.add_(torch.linspace(-1, 1, len(weights))).clone()
    weights.exchange(point)
    assert torch.equal(weights.flat, theta) and torch.equal(point, phi - theta)


def test_slices_cover_the_vector_exactly_and_hold_the_parameters():
    model = network()
    weights = Weights(model)
    ends = 0
    for name, parameter in model.named_parameters():
        place = weights.slices[name]
        assert place.start == ends
        assert torch.equal(weights.flat[place].view_as(parameter), parameter)
        ends = place.stop
    assert ends == len(weights) == sum(parameter.numel() for parameter in model.parameters())


def test_two_modules_share_one_vector():
    one, other = network(0), network(1)
    weights = Weights(one, other)
    assert len(weights) == 2 * sum(parameter.numel() for parameter in one.parameters())
    weights.flat.zero_()
    assert not any(parameter.any() for module in (one, other) for parameter in module.parameters())
    assert {"0.0.weight", "1.3.bias"} <= weights.slices.keys()


def test_a_weight_tied_across_two_modules_of_the_vector_stands_in_it_once():
    one, other = nn.Linear(4, 6), nn.Linear(4, 6)
    other.weight = one.weight
    weights = Weights(one, other)
    assert len(weights) == 24 + 6 + 6
    weights.flat.fill_(2)
    assert one.weight.eq(2).all() and other.weight.eq(2).all()


def test_tied_weights_stand_in_the_vector_once_and_collect_both_gradients():
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = BertForMaskedLM(BertConfig(vocab_size=11, max_position_embeddings=6, **sizes)).double().eval()
    tied = model.bert.embeddings.word_embeddings.weight
    assert model.cls.predictions.decoder.weight is tied
    plain = copy.deepcopy(model)
    weights = Weights(model)
    assert len(weights) == sum(parameter.numel() for parameter in model.parameters())
    weights.flat[weights.slices["bert.embeddings.word_embeddings.weight"]] *= 2
    with torch.no_grad():
        plain.bert.embeddings.word_embeddings.weight *= 2
    tokens = torch.tensor([[1, 2, 3, 4]])
    for each in (model, plain):
        each(input_ids=tokens, labels=tokens).loss.backward()
    assert torch.equal(model(tokens).logits, plain(tokens).logits)
    grad = weights.grad[weights.slices["bert.embeddings.word_embeddings.weight"]].view_as(tied)
    torch.testing.assert_close(grad, plain.bert.embeddings.word_embeddings.weight.grad, rtol=1e-12, atol=1e-14)


def test_frozen_parameters_are_not_in_the_vector_and_do_not_learn():
    model = network()
    model[0].requires_grad_(False)
    frozen, free = model[0].weight.clone(), model[3].weight.clone()
    weights = Weights(model)
    assert not any(name.startswith("0.") for name in weights.slices)
    assert len(weights) == sum(p.numel() for p in model.parameters()) - 30
    optimizer = torch.optim.SGD([weights.leaf()], lr=1.0)
    loss_of(model, 0).backward()
    optimizer.step()
    assert torch.equal(model[0].weight, frozen)
    assert not torch.equal(model[3].weight, free)


def test_modules_without_a_trainable_parameter_are_refused():
    with pytest.raises(ValueError, match="trainable"):
        Weights(network().requires_grad_(False), nn.Tanh())


def test_backward_adds_to_the_gradient_vector():
    model = network()
    weights = Weights(model)
    expected = torch.zeros_like(weights.flat)
    for batch in (0, 1):
        grads = torch.autograd.grad(loss_of(model, batch), list(model.parameters()))
        expected += torch.cat([grad.flatten() for grad in grads])
    for batch in (0, 1):
        loss_of(model, batch).backward()
    torch.testing.assert_close(weights.grad, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: torch.optim.SGD(parameters, lr=0.3),
        lambda parameters: torch.optim.Adam(parameters, lr=0.03, betas=(0.0, 0.999)),
        lambda parameters: torch.optim.Adam(parameters, lr=0.03, betas=(0.0, 0.999), fused=True),
    ],
    ids=["sgd", "adam", "adam fused"],
)
def test_an_optimiser_over_the_leaf_equals_torchs_over_the_parameters(make):
    model, plain = network(), network()
    weights = Weights(model)
    flat, usual = make([weights.leaf()]), make(plain.parameters())
    for batch in range(10):
        weights.grad.zero_()
        usual.zero_grad()
        loss_of(model, batch).backward()
        loss_of(plain, batch).backward()
        flat.step()
        usual.step()
    expected = torch.cat([parameter.detach().flatten() for parameter in plain.parameters()])
    assert (expected - Weights(network()).flat).abs().max() > 0.1  # it went somewhere
    torch.testing.assert_close(weights.flat, expected, rtol=1e-12, atol=1e-12)
