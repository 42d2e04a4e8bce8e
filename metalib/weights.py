"""Weights: everything that is learned, as one point θ in weight space; a step of it, and a copy of it on disk."""

from collections.abc import Iterable
from contextlib import suppress
from tempfile import TemporaryFile
from weakref import finalize

import torch
from safetensors.torch import load, save
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from metalib.errors import MetalibError

CHUNK = 2**18  # numbers that a CPU works on at a time: they stay in its cache
PIECE = 2**24  # numbers that a GPU works on, or that are summed over the processes, in one call


def pieces(vector: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A vector, cut up to be worked on piece by piece: to copy all of it would cost memory."""
    return vector.split(CHUNK if vector.device.type == "cpu" else PIECE)


class Weights:
    """The trainable parameters of some modules as one flat vector.

    Each parameter becomes a view into `flat`, and its gradient a view into `grad`, so that taking a snapshot of the
    weights, the difference between two points, or a step along a direction is one tensor operation each. Tied weights
    stand in the vector once; frozen parameters (`requires_grad=False`) are not in it.

    Attributes:
        flat: (P,) the weights themselves, θ or φ; writing into it writes into the modules.
        grad: (P,) where `backward()` adds the gradients.
        slices: name of a parameter → its place in the vector.
        shapes: name of a parameter → its shape.
    """

    def __init__(self, *modules: nn.Module) -> None:
        module = modules[0] if len(modules) == 1 else nn.ModuleList(modules)
        named = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        if not named:
            raise ValueError("none of the modules has a trainable parameter")
        first = next(iter(named.values()))
        size = sum(parameter.numel() for parameter in named.values())
        self.flat = torch.empty(size, dtype=first.dtype, device=first.device)
        self.grad = torch.zeros_like(self.flat)
        self._lent = WeakIdKeyDictionary()  # the vectors given out, as long as somebody has them
        self._spare: list[torch.Tensor] = []
        self.slices: dict[str, slice] = {}
        self.shapes = {name: parameter.shape for name, parameter in named.items()}
        end = 0
        for name, parameter in named.items():
            start, end = end, end + parameter.numel()
            self.slices[name] = slice(start, end)
            self.flat[start:end] = parameter.detach().flatten()
            parameter.data = self.flat[start:end].view_as(parameter)
            parameter.grad = self.grad[start:end].view_as(parameter)

    def __len__(self) -> int:
        return self.flat.numel()

    def snapshot(self) -> torch.Tensor:
        """A copy (P,) of the point where the weights are now."""
        return self.flat.clone()

    def restore(self, point: torch.Tensor) -> None:
        """Put the weights back to `point` (P,)."""
        self.flat.copy_(point)

    def exchange(self, point: torch.Tensor) -> None:
        """Put the weights back to `point` (P,), in whose place the displacement from there to here is left."""
        for here, there in zip(pieces(self.flat), pieces(point), strict=True):
            before = there.clone()
            torch.sub(here, before, out=there)
            here.copy_(before)

    def vector(self) -> torch.Tensor:
        """A vector (P,) to be written into: a used one where there is one, as fresh memory is several times slower."""
        vector = self._spare.pop() if self._spare else torch.empty_like(self.flat)
        self._lent[vector] = True
        return vector

    def give_back(self, vector: torch.Tensor) -> None:
        """Let a vector from `vector()` be used again; any other tensor is left alone."""
        if self._lent.pop(vector, False):
            self._spare.append(vector)

    def views(self, point: torch.Tensor) -> dict[str, torch.Tensor]:
        """Name → parameter, as views into any `point` (P,): what `torch.func.functional_call` takes."""
        pieces = point.split([shape.numel() for shape in self.shapes.values()])  # one cut: its derivative is cheap
        return {name: piece.view(self.shapes[name]) for name, piece in zip(self.slices, pieces, strict=True)}

    def places(self, names: Iterable[str]) -> list[slice]:
        """Where these parameters stand in the vector; neighbours are one slice."""
        merged: list[slice] = []
        for place in sorted((self.slices[name] for name in names), key=lambda place: place.start):
            if merged and merged[-1].stop == place.start:
                place = slice(merged.pop().start, place.stop)
            merged.append(place)
        return merged

    def leaf(self, place: slice = slice(None)) -> nn.Parameter:
        """The flat vector, or a slice of it, as a single parameter, for an optimiser that steps all of it at once."""
        parameter = nn.Parameter(self.flat[place])
        parameter.grad = self.grad[place]
        return parameter


class OuterStep:
    """θ ← θ + ε · direction (`sgd`, Reptile's equation), or Adam with learning rate ε on −direction (`adam`)."""

    def __init__(self, weights: Weights, kind: str) -> None:
        self.weights, self.kind = weights, kind
        self.adam = torch.optim.Adam([weights.leaf()]) if kind == "adam" else None

    def __call__(self, direction: torch.Tensor, epsilon: float) -> None:
        """Take one step along `direction` (P,), a float64 mean over the tasks of the meta-batch."""
        if self.adam is None:
            for theta, change in zip(pieces(self.weights.flat), pieces(direction), strict=True):
                theta.copy_(theta.to(change.dtype) + epsilon * change)
        else:
            self.weights.grad.copy_(-direction)
            self.adam.param_groups[0]["lr"] = epsilon
            self.adam.step()

    def state(self) -> dict[str, torch.Tensor]:
        """Everything that must be saved to go on later, θ included."""
        inner: dict[str, torch.Tensor] = next(iter(self.adam.state.values()), {}) if self.adam else {}
        return {"theta": self.weights.flat, **{f"outer.{name}": tensor for name, tensor in inner.items()}}

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take over a saved state; the tensors are copied."""
        self.weights.restore(tensors["theta"])
        inner = {k.removeprefix("outer."): v.clone() for k, v in tensors.items() if k.startswith("outer.")}
        if self.adam and inner:
            self.adam.load_state_dict({"state": {0: inner}, "param_groups": self.adam.state_dict()["param_groups"]})


class Kept:
    """A point (P,) that lies in a temporary file, out of memory, for as long as this object lives.

    Raises:
        MetalibError: it cannot be written.
    """

    def __init__(self, point: torch.Tensor) -> None:
        self.device = point.device
        self.file = TemporaryFile()  # noqa: SIM115 — it goes with this object
        try:
            self.file.write(save({"point": point}))
            self.file.flush()
        except OSError as error:
            with suppress(OSError):
                self.file.close()
            raise MetalibError(
                f"{point.nbytes / 2**20:.0f} MiB of first weights cannot be kept in a temporary file ({error}) — free "
                "some space there, or name another folder: TMPDIR=/path"
            ) from error
        finalize(self, self.file.close)

    def read(self) -> torch.Tensor:
        """A copy of the point (P,), on its device."""
        self.file.seek(0)
        return load(self.file.read())["point"].to(self.device)
