"""Complexity-aware training: units and layers leave while the weights are trained.

Every unit, and every branch where there are branch gates, is a Bernoulli variable ``xi`` with a
parameter theta. Weights and thetas minimise together::

    E[task loss] + nu * C(theta)        (`fxprune.controllers.complexity` has C, alpha and beta)

Each weight step is taken with one sample of all gates, and its backward pass gives the slopes of
the loss by the sampled gates (`fxprune.controllers.slopes`). The objective is linear in each theta
alone, so its minima are at 0 and 1: the outcome is one network and not a distribution. A structure
whose theta reaches 0 is gone for good.

A run has three phases: the weights warm up until the slopes tell something; thetas move; and from
then on the gates are hard and the weights train what is left. In the first two, some of the steps
are probes, which measure and leave the weights alone (`fxprune.controllers.probes`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxprune.budget import Selection
from fxprune.controllers.checks import check_positive, check_run, check_share, check_slope
from fxprune.controllers.complexity import Complexity
from fxprune.controllers.distributed import average_over_ranks, same_on_all_ranks
from fxprune.controllers.early import warn_early
from fxprune.controllers.probes import Probes
from fxprune.controllers.search import Search, aim_of
from fxprune.controllers.state import take_over
from fxprune.controllers.timing import Phase, Timing
from fxprune.errors import LoadError
from fxprune.gated import GatedModule
from fxprune.prune import set_masks

__all__ = ["ComplexityAware"]

_log = logging.getLogger("fxprune")

_WORTH_CUTTING = 0.25
"""Share of the MACs that must have been removed since the last time for the model to be shrunk."""


class ComplexityAware:
    """Removes units and branches while a gated model trains.

    Call `step` after every optimizer step and `finish` at the end; the loop stays yours. Train in
    training mode; where the loss is scaled (``GradScaler``), tell `step` by how much.

    Parameters
    ----------
    gated : GatedModule
        From `fxprune.auto_gate`; the module itself, not a wrapper of it.
    optimizer : torch.optim.Optimizer
        Any optimizer of the gated model's parameters.
    steps : int
        Optimizer steps of the whole run.
    nu : float, optional
        What the dense network's complexity weighs against the task loss. The end is then what
        settles at this price.
    macs, params : float in (0, 1], optional
        Share of the *whole* dense model to keep: nu is found during the run, and the budget met
        within 1 %. Give one of `nu`, `macs` and `params`.
    alpha : float in [0, 1], optional
        How much of the complexity is MACs; the rest is parameters. By default that of the budget
        alone, and half of each where `nu` is given.
    beta : float in [0, 1]
        Balance of layers (branches) against units: 0.5 lets both pay what they cost; 0 removes
        units only, 1 layers only.
    round_to : int, optional
        Widths stay multiples of this; what `auto_gate` was given by default.
    shrink : bool
        Cut what has been removed out of `gated` and `optimizer` on the way, see
        `GatedModule.shrink_`: the run computes the same, in less time. What wraps `gated`, such as
        ``DistributedDataParallel``, has to be made anew whenever ``gated.plan`` is another.
    seed : int
        For the samples; torch's global random state is not touched.

    Attributes
    ----------
    steps_done : int
        Weight steps so far.
    selection : Selection or None
        The final masks of the original units and what they cost, once they are fixed.
    settled : float
        Share of the thetas that are within 0.05 of 0 or 1. After the search: at its end, before
        the others were resolved.

    Raises
    ------
    ConfigError
        If an argument is wrong, or `optimizer` is not of this model's parameters.
    BudgetError
        If the budget is out of range or cannot be reached.

    Notes
    -----
    What structures are worth is measured in probes: steps in which many gates stand anywhere
    between closed and open and the optimizer does not move, because a hook on it drops the
    gradients first. They are 7 % of a run of 500 steps and 3 % of a long one, and over when masks
    are fixed. An optimizer that computes gradients itself, in a closure, moves all the same.

    References
    ----------
    .. [1] Guenter and Sideris, "Complexity-Aware Training of Deep Neural Networks for Optimal
    Structure Discovery", 2024, arXiv:2411.09127.

    Examples
    --------
    >>> import torch, fxprune
    >>> from fxprune.controllers import ComplexityAware
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 200), torch.nn.ReLU(), torch.nn.Linear(200, 2))
    >>> x, y = torch.randn(64, 8), torch.randint(2, (64,))
    >>> gated = fxprune.auto_gate(net, x[:1])
    >>> optimizer = torch.optim.SGD(gated.parameters(), 0.1)
    >>> aware = ComplexityAware(gated, optimizer, steps=60, macs=0.5)
    >>> for _ in range(60):
    ...     optimizer.zero_grad()
    ...     torch.nn.functional.cross_entropy(gated(x), y).backward()
    ...     optimizer.step()
    ...     aware.step()
    >>> round(aware.finish().reached, 2)
    0.5
    """

    def __init__(
        self,
        gated: GatedModule,
        optimizer: torch.optim.Optimizer,
        *,
        steps: int,
        nu: float | None = None,
        macs: float | None = None,
        params: float | None = None,
        alpha: float | None = None,
        beta: float = 0.5,
        round_to: int | None = None,
        shrink: bool = False,
        seed: int = 0,
    ) -> None:
        check_run(gated, optimizer, steps, seed)
        self.steps, self._timing = steps, Timing(steps)
        self._gated, self._optimizer = gated, optimizer
        self._shrinks = bool(shrink)
        self._round_to = gated.settings.round_to if round_to is None else round_to
        if alpha is None:
            alpha = 0.5 if nu is not None else float(macs is not None)
        alpha, beta = check_share("alpha", alpha), check_share("beta", beta)
        self._term = Complexity(gated, alpha, beta)
        self._aim = aim_of(gated, self._term, nu, macs, params, self._round_to)
        self._search = Search(gated, self._term, self._aim, self._round_to)
        self._probes = Probes(gated, optimizer)
        self._arguments = self._describe()
        self._generator = torch.Generator().manual_seed(same_on_all_ranks(seed, self._device))
        self.steps_done = 0
        self.selection: Selection | None = None
        self._settled: float | None = None
        self._expected = 1.0
        self._draw()

    # -- what a training loop may show
    @property
    def phase(self) -> Phase:
        """The phase that the next weight step belongs to."""
        return self._timing.phase(self.steps_done)

    @property
    def expected(self) -> float:
        """Share of the resource that thetas keep in expectation; of the final masks, at the end."""
        return self._expected

    @property
    def settled(self) -> float:
        """See above."""
        return self._search.thetas.settled if self._settled is None else self._settled

    @property
    def nu(self) -> float | None:
        """The price in use; None before there is one."""
        return self._aim.nu if self._search.nu is None else self._search.nu

    def thetas(self) -> Tensor:
        """Return every theta, float64, shape (n_units,) of the original model.

        Once masks are fixed, these: 0 or 1.
        """
        found = torch.zeros(self._arguments["units"], dtype=torch.float64)
        found[self._search.units] = self._search.thetas.value
        return found

    # -- the run
    def step(
        self, held_back_loss: Callable[[], Tensor] | None = None, *, loss_scale: float = 1.0
    ) -> None:
        """Do what is due after a weight step.

        Parameters
        ----------
        held_back_loss : callable, optional
            Not used: there is nothing to learn from other data. So that controllers can be
            exchanged.
        loss_scale : float
            What the loss was multiplied by for its backward pass: with a ``GradScaler``, its
            ``get_scale()`` before its ``update()``, after ``unscale_`` too, which leaves gates
            alone. Other controllers have no use for it.

        Raises
        ------
        ConfigError
            If the weight step's loss did not go through the gates, or its scale is no number
            above 0.
        """
        del held_back_loss
        check_positive("loss_scale", loss_scale)
        if self.selection is not None:
            self.steps_done += 1
            return
        slopes = self._slopes() / loss_scale
        self.steps_done += 1
        finite = bool(torch.isfinite(slopes).all())
        measures = self._timing.measures(self.steps_done)
        if finite and measures:
            self._search.measure(slopes, self._sample)
        if not finite:
            _log.warning("step %d: the loss's gradient is not finite; skipped", self.steps_done)
        timing = self._timing
        if timing.began is not None:
            gone = timing.gone(self.steps_done)
            self._expected = self._search.move(gone, timing.length, last=not measures)
            self._close_removed()
        elif timing.may_begin(self.steps_done, self._search.helping):
            timing.began = self.steps_done
        if self.phase == "final":
            self._fix()
        else:
            self._draw()

    def finish(self) -> Selection:
        """End the run: masks are fixed and hard.

        Returns
        -------
        Selection
            What was asked, if anything was, and what was reached.

        Warns
        -----
        EarlyFinishWarning
            If the run ended before its final phase: nothing was trained with these masks.
        BudgetWarning
            If nothing within 1 % of the budget was found.
        """
        if self.selection is None:
            warn_early(self.steps_done, self.steps)
            return self._fix()
        return self.selection

    def _draw(self) -> None:
        """Draw the gates of the next weight step."""
        explored = self._timing.explored(self.steps_done)
        self._use(self._search.draw(self._generator, explored))

    def _use(self, sample: Tensor) -> None:
        self._sample = sample
        like = next(self._gated.parameters())
        dtype = torch.float64 if like.dtype is torch.float64 else torch.float32
        self._gated.sampled_gates = sample.to(like.device, dtype).requires_grad_()
        self._probes.hold(self._timing.explored(self.steps_done) > 0)

    def _slopes(self) -> Tensor:
        """Return the slopes by the gates that the weight step left, the same on all ranks."""
        gates = self._gated.sampled_gates
        slopes = check_slope(None if gates is None else gates.grad, "loss of this step")
        return average_over_ranks(slopes).double().cpu()

    def _close_removed(self) -> None:
        """Close the hard gates of what has been removed, and cut it out where that pays."""
        keep = (~self._search.thetas.removed).numpy()
        if keep.sum() == sum(int(mask.sum()) for mask in self._gated.keep.values()):
            return
        set_masks(self._gated, keep)
        whole = self._gated.cost_of(np.ones_like(keep)).macs
        if self._gated.cost().macs <= (1 - _WORTH_CUTTING) * whole:
            self._cut()

    def _cut(self) -> None:
        """Cut out what the hard masks close."""
        if self._shrinks:
            removed = self._gated.shrink_(self._optimizer)
            self._search.take(torch.from_numpy(removed.units))
            _log.info("step %d: %s", self.steps_done, removed)

    def _fix(self) -> Selection:
        """Resolve what has not settled, and set hard masks."""
        self._settled = self._search.thetas.settled
        self._gated.sampled_gates = None
        chosen = self._search.resolve()
        keep = np.zeros(self._arguments["units"], dtype=bool)
        keep[self._search.units.numpy()[chosen.keep]] = True
        self.selection = replace(chosen, keep=keep)
        self._expected = chosen.reached
        _log.info("step %d: %.1f %% settled; %s", self.steps_done, 100 * self._settled, chosen)
        self._cut()
        return self.selection

    @property
    def _device(self) -> torch.device:
        return next(self._gated.parameters()).device

    # -- checkpoints
    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs: tensors, numbers, strings, lists and dicts only.

        The gated model's and the optimizer's own state_dicts are not part of it.
        """
        return {
            "settings": dict(self._arguments),
            "search": self._search.state_dict(),
            "generator": self._generator.get_state(),
            "sample": None if self.selection is not None else self._sample.clone(),
            "steps_done": self.steps_done,
            "began": self._timing.began,
            "expected": self._expected,
            "settled": self._settled,
            "keep": None if self.selection is None else torch.from_numpy(self.selection.keep),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken, between two weight steps.

        Load the gated model and its optimizer first; where it had been shrunk, after
        ``gated.shrink_to_(remaining, optimizer)``.

        Raises
        ------
        LoadError
            If the state is of a run with other arguments or another model. Nothing is changed then.
        """
        take_over(self, state, self._arguments, self._restore)

    def _restore(self, state: Mapping[str, Any]) -> None:
        here, there = self._gated.plan.n_units, len(state["search"]["units"])
        if here != there:
            raise LoadError(
                "This state belongs to a model that had been shrunk.",
                seen=f"{here} units here, {there} there",
                hint="save gated.remaining with it, and before anything is loaded call "
                "gated.shrink_to_(remaining, optimizer)",
            )
        self._search.load_state_dict(state["search"])
        self._generator.set_state(state["generator"])
        self.steps_done = int(state["steps_done"])
        self._timing.began = None if state["began"] is None else int(state["began"])
        self._expected = float(state["expected"])
        self._settled = None if state["settled"] is None else float(state["settled"])
        keep = state["keep"]
        if keep is None:
            self.selection = None
            set_masks(self._gated, (~self._search.thetas.removed).numpy())
            self._use(torch.zeros(here, dtype=torch.float64).copy_(state["sample"]))
        else:
            self._gated.sampled_gates = None
            self.selection = self._selection(torch.as_tensor(keep).numpy())

    def _selection(self, full: np.ndarray[Any, np.dtype[np.bool_]]) -> Selection:
        """Make the selection of a keep-vector of the original again, and set its masks."""
        keep = full[self._search.units.numpy()]
        set_masks(self._gated, keep)
        aim, cost = self._aim, self._gated.cost_of(keep)
        reached = getattr(cost, aim.resource) / getattr(self._term.dense, aim.resource)
        return Selection.of(aim.resource, aim.target, reached, full, cost)

    def _describe(self) -> dict[str, Any]:
        """Return what two runs must share to be one."""
        return {
            "resource": self._aim.resource,
            "target": self._aim.target,
            "nu": self._aim.nu,
            "alpha": self._term.alpha,
            "beta": self._term.beta,
            "steps": self.steps,
            "round_to": self._round_to,
            "shrink": self._shrinks,
            "units": self._gated.plan.n_units,
            "groups": [[group.name, group.size] for group in self._gated.groups],
        }
