"""Auto-Train-Once: a controller network decides in one training run which channels live.

A run has four phases (`Schedule`): the weights warm up with all gates open; the controller starts
to search; what it would close is driven to zero; and from then on masks are fixed and hard, chosen
from the controller's noise-free logits to meet the budget, and the rest of the run trains just the
function that the compact model computes, whatever its activations do at 0.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fxprune.analysis.plan import Keep
from fxprune.budget import Selection, check_budget
from fxprune.controllers.checks import check_positive, check_run
from fxprune.controllers.distributed import same_on_all_ranks
from fxprune.controllers.early import warn_early
from fxprune.controllers.masks import best_units, open_units
from fxprune.controllers.network import ControllerNetwork
from fxprune.controllers.pressure import Pressure
from fxprune.controllers.relaxation import logistic_noise, relax, round_straight_through
from fxprune.controllers.resource import resource_term
from fxprune.controllers.schedule import Phase, Schedule
from fxprune.controllers.slope import task_slope
from fxprune.controllers.state import take_over
from fxprune.errors import ConfigError, LoadError
from fxprune.gated import GatedModule
from fxprune.inputs import check_count
from fxprune.prune import select, set_masks

__all__ = ["AutoTrainOnce"]

_log = logging.getLogger("fxprune")
_WEIGHT_DECAY = 1e-2


class AutoTrainOnce:
    """Decides the masks of a gated model during one training run.

    Call `step` after every optimizer step and `finish` at the end; the loop stays yours.

    Parameters
    ----------
    gated : GatedModule
        From `fxprune.auto_gate`; the module itself, not a wrapper of it.
    optimizer : torch.optim.Optimizer
        Any optimizer of the gated model's parameters; its learning rates are read at each step.
    steps : int
        Optimizer steps of the whole run.
    macs, params : float in (0, 1]
        Share of the *whole* dense model to keep; give one of the two. Met within 1 %.
    every : int, optional
        Weight steps per controller step; the paper's 20, fewer in short runs.
    learning_rate : float, optional
        Of the controller's AdamW; the paper's 1e-3, more in short runs.
    resource_weight : float
        Weight of the resource term against the task loss.
    projection : {"proximal", "half-space"}
        How closed units are driven to zero.
    strength : float, optional
        Of the projection before masks are fixed. By default the paper's 10, or what it takes to
        reach zero within the projection phase where that is more: short runs, small rates.
    schedule : Schedule, optional
        The paper's in a long run; a longer search with a paced target in a short one.
    round_to : int, optional
        Widths stay multiples of this; what `auto_gate` was given by default.
    shrink : bool
        Cut closed units out of `gated` and `optimizer` as soon as masks are fixed, see
        `GatedModule.shrink_`: the rest of the run computes the same, in less time. What wraps
        `gated`, such as ``DistributedDataParallel``, has to be made anew after that step.
    seed : int
        For the controller's weights and noise; torch's global random state is not touched.

    Attributes
    ----------
    network : ControllerNetwork
    steps_done : int
        Weight steps so far.
    selection : Selection or None
        The final masks and what they cost, once they are fixed; of the model as it was then.

    Raises
    ------
    ConfigError
        If an argument is wrong, or `optimizer` is not of this model's parameters.
    BudgetError
        If the budget is out of range or cannot be reached.

    References
    ----------
    .. [1] Wu et al., "Auto-Train-Once: Controller Network Guided Automatic Network Pruning from
    Scratch", CVPR 2024, arXiv:2403.14729.

    Examples
    --------
    >>> import torch, fxprune
    >>> from fxprune.controllers import AutoTrainOnce
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
    >>> x, y = torch.randn(64, 8), torch.randint(2, (64,))
    >>> gated = fxprune.auto_gate(net, x[:1])
    >>> optimizer = torch.optim.SGD(gated.parameters(), 0.1)
    >>> ato = AutoTrainOnce(gated, optimizer, steps=20, macs=0.5)
    >>> loss_of = lambda x, y: torch.nn.functional.cross_entropy(gated(x), y)
    >>> for _ in range(20):
    ...     optimizer.zero_grad()
    ...     loss_of(x[:48], y[:48]).backward()
    ...     optimizer.step()
    ...     ato.step(lambda: loss_of(x[48:], y[48:]))
    >>> round(ato.finish().reached, 2)
    0.5
    """

    def __init__(
        self,
        gated: GatedModule,
        optimizer: torch.optim.Optimizer,
        *,
        steps: int,
        macs: float | None = None,
        params: float | None = None,
        every: int | None = None,
        learning_rate: float | None = None,
        resource_weight: float = 4.0,
        projection: Literal["proximal", "half-space"] = "proximal",
        strength: float | None = None,
        schedule: Schedule | None = None,
        round_to: int | None = None,
        shrink: bool = False,
        seed: int = 0,
    ) -> None:
        check_run(gated, optimizer, steps, seed)
        if schedule is not None and not isinstance(schedule, Schedule):
            raise ConfigError(
                f"The 'schedule' parameter must be a Schedule. Got {schedule!r} instead.",
                hint="for example Schedule(search=0.1, projection=0.2, final=0.5)",
            )
        self.schedule = Schedule.for_run(steps) if schedule is None else schedule
        self.steps = steps
        self.every = self.schedule.every(steps) if every is None else check_count("every", every)
        rate = self.schedule.rate(steps, self.every) if learning_rate is None else learning_rate
        check_positive("learning_rate", rate)
        check_positive("resource_weight", resource_weight)
        self._round_to = gated.settings.round_to if round_to is None else round_to
        self._resource, self._target = check_budget(
            gated.plan,
            gated.cost_of,
            macs=macs,
            params=params,
            round_to=self._round_to,
            dense=gated.dense_cost,
        )
        self._gated = gated
        self._groups = [[group.name, group.size] for group in gated.groups]
        self._shrinks, self._shrunk = bool(shrink), False
        self._trained = optimizer
        self._weight = resource_weight
        self._dense: int = getattr(gated.dense_cost, self._resource)
        self._pressure = Pressure(gated, optimizer, projection, strength)
        seed = same_on_all_ranks(seed, self._device)
        # The network lives on the CPU wherever the model is: its numbers are then the same on all
        # ranks, and its hundreds of small steps cost no more there.
        self.network = ControllerNetwork([g.size for g in gated.groups], seed)
        self._optimizer = torch.optim.AdamW(
            self.network.parameters(), rate, weight_decay=_WEIGHT_DECAY
        )
        self._generator = torch.Generator().manual_seed(seed)
        self.steps_done = 0
        self.selection: Selection | None = None
        self._expected = 1.0

    # -- what a training loop may show
    @property
    def phase(self) -> Phase:
        """The phase that the next weight step belongs to."""
        return self.schedule.phase(self.steps_done, self.steps)

    @property
    def due(self) -> bool:
        """Whether the next `step` takes a controller step, and so calls the held-back loss."""
        after = self.steps_done + 1
        learns = self.schedule.phase(after, self.steps) in ("search", "projection")
        return learns and after % self.every == 0

    @property
    def expected(self) -> float:
        """Share of the resource that the masks keep now: the controller's, or the final ones."""
        return self._expected

    def logits(self) -> Tensor:
        """Return the controller's noise-free logits without the opening bias, shape (n_units,)."""
        with torch.no_grad():
            logits: Tensor = self.network()
        return logits

    # -- the run
    def step(self, held_back_loss: Callable[[], Tensor]) -> None:
        """Do what is due after a weight step.

        Parameters
        ----------
        held_back_loss : callable
            Returns the task loss of ``gated`` on a batch of held-back training data, a tensor
            without axes. Called only when a controller step is due, with random soft gates; call
            ``gated`` itself in it, not a wrapper such as DistributedDataParallel. Running
            statistics that it changes are put back.

        Raises
        ------
        ConfigError
            If the loss is no scalar tensor, or does not depend on the gates.
        """
        due = self.due
        self.steps_done += 1
        phase = self.phase
        if due:
            self._learn(held_back_loss)
        if phase == "final" and self.selection is None:
            self._fix_masks()
            if self._shrinks:
                self._shrink()
        if phase in ("projection", "final"):
            left = self.schedule.start("final", self.steps) - self.steps_done
            self._pressure.apply(final=phase == "final", steps_left=left)

    def finish(self) -> Selection:
        """End the run: masks are fixed, hard, and within the budget.

        Returns
        -------
        Selection
            What was asked and what was reached.

        Warns
        -----
        EarlyFinishWarning
            If the run ended before its final phase: nothing was trained with these masks.
        BudgetWarning
            If nothing within 1 % of the budget was found.
        """
        if self.selection is None:
            warn_early(self.steps_done, self.steps)
            return self._fix_masks()
        return self.selection

    def _learn(self, held_back_loss: Callable[[], Tensor]) -> None:
        """Take one controller step; the weights are fixed in it."""
        noise = logistic_noise(self._gated.plan.n_units, self._generator)
        gates = relax(self.network(), noise)
        slope = task_slope(self._gated, gates.detach().to(self._device), held_back_loss)
        if not bool(torch.isfinite(slope).all()):
            _log.warning("step %d: the held-back loss is not finite; skipped", self.steps_done)
            return
        kept = self._share(round_straight_through(gates))
        target = self.schedule.target(self.steps_done, self.steps, self._target)
        term = self._weight * resource_term(kept, target)
        self._optimizer.zero_grad()
        torch.autograd.backward([gates, term], [slope.to(gates), torch.ones_like(term)])
        self._optimizer.step()
        self._note_masks(target)

    def _note_masks(self, target: float) -> None:
        """Press on what the noise-free gates close.

        Where the target is paced and the gates lag behind it, the units they would close next are
        pressed as well: what the final masks cut has then faded, and not all at once.
        """
        logits = self.logits().numpy()
        keep = open_units(self._gated, logits)
        self._expected = self._cost(keep) / self._dense
        lags = self.schedule.pace > 0 and self._expected > target
        if lags and self.phase == "projection":
            keep = best_units(self._gated, logits, self._resource, target, self._round_to)
        self._pressure.close(~keep)

    def _fix_masks(self) -> Selection:
        macs = self._target if self._resource == "macs" else None
        params = self._target if self._resource == "params" else None
        chosen = select(
            self._gated,
            macs=macs,
            params=params,
            importance=self.logits(),
            round_to=self._round_to,
        )
        self.selection = chosen
        self._expected = chosen.reached
        self._pressure.close(~chosen.keep)
        _log.info("step %d: masks fixed; %s", self.steps_done, chosen)
        return chosen

    def _shrink(self) -> None:
        """Cut out what the final masks close; nothing is left to press on."""
        removed = self._gated.shrink_(self._trained)
        self._shrunk = True
        self._pressure.close(np.zeros(len(self._pressure.closed), dtype=bool))
        _log.info("step %d: %s", self.steps_done, removed)

    @property
    def _device(self) -> torch.device:
        return next(self._gated.parameters()).device

    def _cost(self, keep: Keep) -> int:
        cost: int = getattr(self._gated.cost_of(keep), self._resource)
        return cost

    def _share(self, gates: Tensor) -> Tensor:
        cost: Tensor = getattr(self._gated.expected_cost(gates), self._resource)
        return cost / self._dense

    # -- checkpoints
    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs: tensors, numbers, strings, lists and dicts only.

        The gated model's and the optimizer's own state_dicts are not part of it.
        """
        return {
            "settings": self._settings(),
            "network": self.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "generator": self._generator.get_state(),
            "steps_done": self.steps_done,
            "expected": self._expected,
            "pressure": self._pressure.state_dict(),
            "shrunk": self._shrunk,
            "keep": None if self.selection is None else torch.from_numpy(self.selection.keep),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Load the gated model and its optimizer first.

        Raises
        ------
        LoadError
            If the state is of a run with another budget, length or model. Nothing is changed then.
        """
        take_over(self, state, self._settings(), self._restore)

    def _restore(self, state: Mapping[str, Any]) -> None:
        """Take a state over; masks come last, as they are the gated model's."""
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._generator.set_state(state["generator"])
        self.steps_done = int(state["steps_done"])
        self._expected = float(state["expected"])
        self._pressure.load_state_dict(state["pressure"])
        self._shrunk = bool(state["shrunk"])
        keep = state["keep"]
        self.selection = None if keep is None else self._selection(keep.numpy())

    def _settings(self) -> dict[str, Any]:
        return {
            "resource": self._resource,
            "target": self._target,
            "steps": self.steps,
            "every": self.every,
            "rate": self._optimizer.defaults["lr"],
            "resource_weight": self._weight,
            "schedule": list(dataclasses.astuple(self.schedule)),
            "round_to": self._round_to,
            "pressure": self._pressure.settings(),
            "shrink": self._shrinks,
            "groups": self._groups,
        }

    def _selection(self, keep: Keep) -> Selection:
        """Make the selection of a keep-vector again, and set its masks if they are not cut out."""
        if not self._shrunk:
            set_masks(self._gated, keep)
        elif self._gated.plan.n_units != keep.sum():
            raise LoadError(
                "This state belongs to a model that had been shrunk.",
                seen=f"{self._gated.plan.n_units} units here, {int(keep.sum())} there",
                hint="save gated.remaining with it, and before anything is loaded call "
                "gated.shrink_to_(remaining, optimizer)",
            )
        cost = self._gated.cost()
        reached = getattr(cost, self._resource) / self._dense
        return Selection.of(self._resource, self._target, reached, keep, cost)
