"""What holds on a GPU (`make test-gpu`). The fast path there records passes and plays them back."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from metalib import fast
from metalib.inner import adapt, add_gradient, forward_backward, untouched
from metalib.tasks import TaskSampler
from metalib.training import Workbench
from metalib.weights import Weights

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or "ACCELERATE_USE_CPU" in os.environ, reason="needs a GPU: make test-gpu"
)


@pytest.fixture(params=[False, True], ids=["padded", "packed"])
def model_bench(bench: Workbench, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Workbench:
    """With a recorder of its own; packed or not."""
    monkeypatch.setattr(fast, "RECORDERS", type(fast.RECORDERS)())
    if not request.param:
        return bench
    config = type(bench.model.config)(**bench.model.config.to_dict())
    model = type(bench.model)(config).to(bench.accelerator.device).eval()
    model.load_state_dict(bench.model.state_dict())
    assert fast.pack(model)
    return replace(bench, model=model, weights=Weights(model))


def walk(bench: Workbench, times: int = 1, **more: object) -> list[torch.Tensor]:
    """Displacements of the inner loops of some tasks, each `times` times."""
    loop = replace(bench.config.training_loop(), **more)
    sampler = TaskSampler(bench.splits.train, 6, 0)
    found = []
    for index in [0, 1, 2] * times:
        with untouched(bench.model, bench.weights) as theta:
            adapt(bench.model, bench.weights, bench.reviews["train"], sampler[index].support, loop, (0, index))
            found.append(bench.weights.flat - theta)
    return found


@pytest.mark.parametrize("more", [{}, {"optimizer": "sgd", "lr": 0.1}, {"dropout": True}, {"micro_batch": 2},
                                  {"adapts": "head"}], ids=str)  # fmt: skip
def test_a_recording_gives_what_was_recorded(model_bench, more, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(fast.Recorder, "record", lambda *_: None)
        plain = walk(model_bench, **more)
    found = walk(model_bench, 3, **more)
    recorder = fast.RECORDERS[model_bench.model]
    assert recorder.works
    assert recorder.recordings
    for index, displacement in enumerate(found):
        expected = plain[index % 3]
        assert (displacement - expected).norm() <= 1e-4 * expected.norm()


def test_recorded_gradients_are_those_of_a_cpu(model_bench):
    rows = TaskSampler(model_bench.splits.train, 6, 0)[3].support
    reviews, weights = model_bench.reviews["train"], model_bench.weights
    slopes = []
    for _ in range(3):
        weights.grad.zero_()
        loss = add_gradient(model_bench.model, reviews, rows)
        slopes.append(weights.grad.clone())
    assert fast.RECORDERS[model_bench.model].recordings
    config = type(model_bench.model.config)(**model_bench.model.config.to_dict())
    model = type(model_bench.model)(config).eval()
    model.load_state_dict({name: tensor.cpu() for name, tensor in model_bench.model.state_dict().items()})
    here = Weights(model)
    expected = forward_backward(model, {name: tensor.cpu() for name, tensor in reviews.batch(rows).items()}, 1.0)
    torch.testing.assert_close(loss.cpu(), expected, rtol=1e-4, atol=1e-5)
    for slope in slopes:
        assert (slope.cpu() - here.grad).norm() <= 1e-3 * here.grad.norm()


def test_a_recording_is_not_played_for_weights_that_stand_elsewhere(model_bench):
    rows, reviews = np.arange(5), model_bench.reviews["train"]
    for _ in range(3):
        add_gradient(model_bench.model, reviews, rows)
    before, other = len(fast.RECORDERS[model_bench.model].recordings), Weights(model_bench.model)
    add_gradient(model_bench.model, reviews, rows)
    assert float(other.grad.norm()) > 0
    assert len(fast.RECORDERS[model_bench.model].recordings) == before
    model_bench.weights = Weights(model_bench.model)


def test_what_cannot_be_recorded_is_computed_as_ever(model_bench, monkeypatch):
    forward = model_bench.model.forward

    def looks(**inputs):
        assert int(inputs["labels"].sum()) >= 0  # asks for a number while the GPU records
        return forward(**inputs)

    monkeypatch.setattr(model_bench.model, "forward", looks)
    losses = [float(add_gradient(model_bench.model, model_bench.reviews["train"], np.arange(4))) for _ in range(4)]
    torch.manual_seed(0)
    drawn = torch.rand(4, device="cuda")  # dropout can still be drawn, and seeded
    torch.manual_seed(0)
    assert torch.equal(torch.rand(4, device="cuda"), drawn)
    assert not fast.RECORDERS[model_bench.model].works
    np.testing.assert_allclose(losses, losses[0], rtol=1e-5)


@pytest.mark.parametrize("size", [16, 32, 64])
def test_the_benchmark_attends_within_texts(size, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(Path(__file__).resolve().parents[1] / "benchmarks")])
    from attention import within_texts
    from torch.nn.functional import scaled_dot_product_attention

    lengths = [1, 100, 0, 63, 64, 300, 65, 0, 0, 47]
    ends = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32, device="cuda")
    texts = torch.arange(len(lengths), dtype=torch.int32).repeat_interleave(torch.tensor(lengths)).cuda()
    torch.manual_seed(0)
    qkv = torch.randn(len(texts), 3, 4, size, device="cuda").bfloat16().float().requires_grad_()
    slope = torch.randn(len(texts), 4 * size, device="cuda").bfloat16().float()
    q, k, v = qkv.transpose(0, 2).unbind(1)
    expected = scaled_dot_product_attention(q, k, v, texts[:, None] == texts).transpose(0, 1).flatten(1)
    (expected_slope,) = torch.autograd.grad(expected, qkv, slope)
    low = qkv.detach().bfloat16().requires_grad_()
    found = within_texts(low, texts, ends)[0]
    (found_slope,) = torch.autograd.grad(found, low, slope.bfloat16())
    assert (found - expected).norm() <= 0.01 * expected.norm()
    assert (found_slope - expected_slope).norm() <= 0.01 * expected_slope.norm()
