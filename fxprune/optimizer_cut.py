"""Cut an optimizer's state together with the parameters it belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxprune._taking import take
from fxprune.errors import ConfigError

__all__ = ["Cut", "OptimizerCut", "Optimizers", "as_optimizers", "check_holds"]

Optimizers = torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """Which positions of a tensor stay.

    Attributes
    ----------
    shape : tuple of int
        Of the whole tensor.
    positions : tuple of (int64 Tensor or None)
        By axis; None where all stay.
    """

    shape: tuple[int, ...]
    positions: tuple[Tensor | None, ...]

    def fits(self, tensor: Tensor) -> bool:
        """Return whether a tensor has the whole shape, or 1 instead of it on some axes."""
        if tensor.dim() != len(self.shape):
            return False
        return all(n in (full, 1) for n, full in zip(tensor.shape, self.shape, strict=True))

    def of(self, tensor: Tensor) -> Tensor:
        """Return what stays of a tensor that fits; axes of size 1 are left as they are."""
        sizes = zip(self.positions, tensor.shape, self.shape, strict=True)
        return take(tensor, [at if size == whole else None for at, size, whole in sizes])

    def put(self, small: Tensor, whole: Tensor) -> None:
        """Write what stayed of a tensor of the whole shape back to where it was."""
        places = [
            torch.arange(size) if at is None else at
            for size, at in zip(self.shape, self.positions, strict=True)
        ]
        whole[torch.meshgrid(*places, indexing="ij")] = small.to(whole.device, whole.dtype)


def as_optimizers(given: Optimizers, model: nn.Module) -> tuple[torch.optim.Optimizer, ...]:
    """Return one optimizer, several or none as a tuple.

    Raises
    ------
    ConfigError
        If it is something else, or an optimizer holds none of the model's parameters.
    """
    if given is None:
        return ()
    found = (given,) if isinstance(given, torch.optim.Optimizer) else given
    if not isinstance(found, Sequence) or not all(
        isinstance(one, torch.optim.Optimizer) for one in found
    ):
        raise ConfigError(
            "shrink_ takes an optimizer, a list of optimizers, or None.",
            seen=f"a {type(given).__name__}",
            hint="pass the torch.optim.Optimizer that trains the gated model",
        )
    for optimizer in found:
        check_holds(optimizer, model)
    return tuple(found)


def check_holds(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Raise a ConfigError unless an optimizer holds parameters of a gated model."""
    own = {id(p) for p in model.parameters()}
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    if not own & set(held):
        raise ConfigError(
            "The optimizer holds none of the gated model's parameters.",
            seen=f"{len(held)} parameters of something else",
            hint="fxprune.auto_gate copies the model: make the optimizer of gated.parameters()",
        )


class OptimizerCut:
    """An optimizer's state with positions cut out of it: worked out at once, put in place later.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
    names : mapping of int to str
        Of every parameter of the model, by ``id``.
    cuts : mapping of int to Cut
        Of the parameters that lose positions, by ``id``.
    gone : set of int
        ``id`` of the parameters that the model loses.

    Raises
    ------
    ConfigError
        If a tensor in its state is not shaped like its parameter and so cannot be cut.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        names: Mapping[int, str],
        cuts: Mapping[int, Cut],
        gone: set[int],
    ) -> None:
        self._optimizer = optimizer
        self._gone = gone
        held = [p for group in optimizer.param_groups for p in group["params"]]
        self._states = {
            p: _cut_state(optimizer.state[p], cuts[id(p)], names[id(p)])
            for p in held
            if id(p) in cuts and p in optimizer.state
        }

    def apply(self) -> None:
        """Put the cut state in place, and drop what belongs to parameters that are gone."""
        for parameter, state in self._states.items():
            self._optimizer.state[parameter].update(state)
        for group in self._optimizer.param_groups:
            gone = [p for p in group["params"] if id(p) in self._gone]
            for parameter in gone:
                self._optimizer.state.pop(parameter, None)
            if gone:
                group["params"] = [p for p in group["params"] if id(p) not in self._gone]


def _cut_state(state: Mapping[str, Any], cut: Cut, name: str) -> dict[str, Any]:
    """Return the entries that change."""
    changed = {}
    for key, value in state.items():
        if not isinstance(value, Tensor) or value.numel() <= 1:
            continue
        if not cut.fits(value):
            raise ConfigError(
                f"The optimizer's state {key!r} of a parameter cannot be cut with it.",
                where=name,
                seen=f"shape {tuple(value.shape)}; the parameter has {cut.shape}",
                hint="shrink before the first step of such an optimizer, or make a new one",
            )
        changed[key] = cut.of(value)
    return changed
