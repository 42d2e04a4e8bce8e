"""Weights: everything that is learned, as one point θ in weight space."""

import torch
from torch import nn


class Weights:
    """The trainable parameters of some modules as one flat vector.

    Each parameter becomes a view into `flat`, and its gradient a view into `grad`, so that taking a snapshot of the
    weights, the difference between two points, or a step along a direction is one tensor operation each. Tied weights
    stand in the vector once; frozen parameters (`requires_grad=False`) are not in it.

    Attributes:
        flat: (P,) the weights themselves, θ or φ; writing into it writes into the modules.
        grad: (P,) where `backward()` adds the gradients.
        slices: name of a parameter → its place in the vector.
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
        self.slices: dict[str, slice] = {}
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

    def leaf(self) -> nn.Parameter:
        """The flat vector as a single parameter, for an optimiser that steps all weights at once."""
        parameter = nn.Parameter(self.flat)
        parameter.grad = self.grad
        return parameter
