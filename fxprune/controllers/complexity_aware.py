"""Complexity-aware training: units and layers leave while the weights are trained.

Every unit, and every branch where there are branch gates, is a Bernoulli variable ``xi`` with a
parameter theta. Weights and thetas minimise together::

    E[task loss] + nu * C(theta)        (`fxprune.controllers.complexity` has C, alpha and beta)

Each weight step is taken with one sample of all gates, and its backward pass gives the slopes of
the loss by the sampled gates (`fxprune.controllers.slopes`). The objective is linear in each theta
alone, so its minima are at 0 and 1: the outcome is one network and not a distribution. A structure
whose theta reaches 0 is gone for good.

A run has three phases: the weights warm up, with few gates closed, while the slopes are measured;
thetas move; and from then on the gates are hard and the weights train what is left.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from fxprune.analysis.plan import Keep
from fxprune.budget import Selection, check_budget
from fxprune.controllers.auto_train_once import EarlyFinishWarning
from fxprune.controllers.bernoulli import Thetas
from fxprune.controllers.checks import (
    check_gated,
    check_optimizer,
    check_positive,
    check_share,
    check_slope,
)
from fxprune.controllers.complexity import Complexity
from fxprune.controllers.distributed import average_over_ranks, same_on_all_ranks
from fxprune.controllers.price import Market, follow_budget
from fxprune.controllers.resolve import blocks_of, resolve
from fxprune.controllers.slopes import Slopes
from fxprune.controllers.state import take_over
from fxprune.errors import ConfigError
from fxprune.gated import GatedModule
from fxprune.inputs import check_count
from fxprune.prune import set_masks

__all__ = ["ComplexityAware", "Phase"]

Phase = Literal["warm-up", "search", "final"]

_log = logging.getLogger("fxprune")

_SEARCH, _FINAL = 0.3, 0.7
"""Shares of the run after which thetas move, and after which gates are hard.

Before a net has begun to learn, its slopes are noise.
"""

_PACE = 0.8
"""Share of the search that the budget takes to fall, geometrically, to what was asked, and the
price to rise to what was given."""

_STEPS_ACROSS = 12
"""A theta can go from 0 to 1 so many times during a search."""


class ComplexityAware:
    """Removes units and branches while a gated model trains.

    Call `step` after every optimizer step and `finish` at the end; the loop stays yours. Train in
    training mode, with gradients of the loss as it is: a scaled one (``GradScaler``) would count as
    so much more important.

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
    seed : int
        For the samples; torch's global random state is not touched.

    Attributes
    ----------
    steps_done : int
        Weight steps so far.
    selection : Selection or None
        The final masks and what they cost, once they are fixed.
    settled : float
        Share of the thetas that are within 0.05 of 0 or 1. After the search: at its end, before
        the others were resolved.

    Raises
    ------
    ConfigError
        If an argument is wrong, or `optimizer` is not of this model's parameters.
    BudgetError
        If the budget is out of range or cannot be reached.

    References
    ----------
    .. [1] Guenter and Sideris, "Complexity-Aware Training of Deep Neural Networks for Optimal
    Structure Discovery", 2024, arXiv:2411.09127.

    Examples
    --------
    >>> import torch, fxprune
    >>> from fxprune.controllers import ComplexityAware
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
    >>> x, y = torch.randn(64, 8), torch.randint(2, (64,))
    >>> gated = fxprune.auto_gate(net, x[:1])
    >>> optimizer = torch.optim.SGD(gated.parameters(), 0.1)
    >>> aware = ComplexityAware(gated, optimizer, steps=20, macs=0.5)
    >>> for _ in range(20):
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
        seed: int = 0,
    ) -> None:
        check_gated(gated)
        check_optimizer(optimizer, gated)
        check_count("steps", steps)
        check_count("seed", seed, least=0)
        self.steps = steps
        self._gated = gated
        self._round_to = gated.settings.round_to if round_to is None else round_to
        self._target: float | None = None
        self._resource: Literal["macs", "params"]
        if nu is not None and macs is None and params is None:
            check_positive("nu", nu)
            alpha = 0.5 if alpha is None else alpha
            check_share("alpha", alpha)
            self._resource = "macs" if alpha >= 0.5 else "params"
        else:
            _check_one(nu, macs, params)
            self._resource, self._target = check_budget(
                gated.plan, gated.cost_of, macs=macs, params=params, round_to=self._round_to
            )
            alpha = float(self._resource == "macs") if alpha is None else alpha
        self._given = nu
        self._term = Complexity(gated, check_share("alpha", alpha), check_share("beta", beta))
        self._thetas = Thetas(blocks_of(gated, self._round_to), self._term.weights() == 0)
        self._slopes = Slopes(_group_numbers(gated))
        self._nu: float | None = None
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
        if self.steps_done >= self._start("final"):
            return "final"
        return "search" if self.steps_done >= self._start("search") else "warm-up"

    @property
    def expected(self) -> float:
        """Share of the resource that thetas keep in expectation; of the final masks, at the end."""
        return self._expected

    @property
    def settled(self) -> float:
        """See above."""
        return self._thetas.settled if self._settled is None else self._settled

    @property
    def nu(self) -> float | None:
        """The price in use; None before there is one."""
        return self._nu

    def thetas(self) -> Tensor:
        """Return every theta, float64, shape (n_units,)."""
        return self._thetas.value.clone()

    # -- the run
    def step(self, held_back_loss: Callable[[], Tensor] | None = None) -> None:
        """Do what is due after a weight step.

        Parameters
        ----------
        held_back_loss : callable, optional
            Not used: there is nothing to learn from other data. So that controllers can be
            exchanged.

        Raises
        ------
        ConfigError
            If the weight step's loss did not go through the gates.
        """
        del held_back_loss
        self.steps_done += 1
        if self.selection is not None:
            return
        self._measure()
        if self.phase != "warm-up":
            self._move()
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
            warnings.warn(
                f"The run was finished after {self.steps_done} of {self.steps} steps, before its "
                "masks were fixed: the compact model will need fine-tuning.",
                EarlyFinishWarning,
                stacklevel=2,
            )
            return self._fix()
        return self.selection

    def _draw(self) -> None:
        """Draw the gates of the next weight step."""
        self._sample = self._thetas.draw(self._generator)
        gates = self._sample.to(self._device, torch.float32)
        self._gated.sampled_gates = gates.requires_grad_()

    def _measure(self) -> None:
        """Take note of the slopes by the gates that the weight step left."""
        gates = self._gated.sampled_gates
        slopes = check_slope(None if gates is None else gates.grad)
        slopes = average_over_ranks(slopes).double().cpu()
        if bool(torch.isfinite(slopes).all()):
            self._slopes.add(slopes, self._sample, self._thetas.free)
        else:
            _log.warning("step %d: the loss is not finite; skipped", self.steps_done)

    def _move(self) -> None:
        """Let thetas take a step."""
        theta, effects = self._thetas.value, self._slopes.effects()
        prices = self._term.at(theta)
        length = max(1, self._start("final") - self._start("search"))
        market = Market(
            theta, effects, self._term.mixed(prices), self._thetas.free, _STEPS_ACROSS / length
        )
        gone = (self.steps_done - self._start("search")) / length / _PACE
        if self._target is None:
            self._nu = (self._given or 0.0) * min(1.0, gone)
            step = market.step(self._nu)
        else:
            share, slopes = prices.of(self._resource)
            wanted = self._target ** min(1.0, gone) - share
            step, self._nu = follow_budget(market, slopes, wanted, self._nu)
        self._thetas.move(step, -effects)
        self._expected, _ = self._term.at(self._thetas.value).of(self._resource)

    def _fix(self) -> Selection:
        """Resolve what has not settled, and set hard masks."""
        self._settled = self._thetas.settled
        self._gated.sampled_gates = None
        chosen = resolve(
            self._gated,
            self._thetas,
            -self._slopes.effects(),
            self._resource,
            self._target,
            self._dense,
            self._round_to,
        )
        self.selection = chosen
        self._expected = chosen.reached
        _log.info("step %d: %.1f %% settled; %s", self.steps_done, 100 * self._settled, chosen)
        return chosen

    def _start(self, phase: Literal["search", "final"]) -> int:
        """Return the number of weight steps after which a phase begins."""
        return round((_SEARCH if phase == "search" else _FINAL) * self.steps)

    @property
    def _dense(self) -> int:
        cost: int = getattr(self._term.dense, self._resource)
        return cost

    @property
    def _device(self) -> torch.device:
        return next(self._gated.parameters()).device

    # -- checkpoints
    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs: tensors, numbers, strings, lists and dicts only.

        The gated model's and the optimizer's own state_dicts are not part of it.
        """
        return {
            "settings": self._settings(),
            "thetas": self._thetas.state_dict(),
            "slopes": self._slopes.state_dict(),
            "generator": self._generator.get_state(),
            "sample": self._sample.clone(),
            "steps_done": self.steps_done,
            "nu": self._nu,
            "expected": self._expected,
            "settled": self._settled,
            "keep": None if self.selection is None else torch.from_numpy(self.selection.keep),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken, between two weight steps.

        Load the gated model and its optimizer first.

        Raises
        ------
        LoadError
            If the state is of a run with other arguments or another model. Nothing is changed then.
        """
        take_over(self, state, self._settings(), self._restore)

    def _restore(self, state: Mapping[str, Any]) -> None:
        self._thetas.load_state_dict(state["thetas"])
        self._slopes.load_state_dict(state["slopes"])
        self._generator.set_state(state["generator"])
        self.steps_done = int(state["steps_done"])
        self._nu = None if state["nu"] is None else float(state["nu"])
        self._expected = float(state["expected"])
        self._settled = None if state["settled"] is None else float(state["settled"])
        keep = state["keep"]
        self.selection = None if keep is None else self._selection(keep.numpy())
        self._sample = torch.zeros_like(self._sample).copy_(state["sample"])
        gates = self._sample.to(self._device, torch.float32).requires_grad_()
        self._gated.sampled_gates = gates if keep is None else None

    def _settings(self) -> dict[str, Any]:
        return {
            "resource": self._resource,
            "target": self._target,
            "nu": self._given,
            "alpha": self._term.alpha,
            "beta": self._term.beta,
            "steps": self.steps,
            "round_to": self._round_to,
            "groups": [[group.name, group.size] for group in self._gated.groups],
        }

    def _selection(self, keep: Keep) -> Selection:
        """Make the selection of a keep-vector again, and set its masks."""
        set_masks(self._gated, keep)
        cost = self._gated.cost_of(keep)
        reached = getattr(cost, self._resource) / self._dense
        return Selection.of(self._resource, self._target, reached, keep, cost)


def _check_one(nu: object, macs: object, params: object) -> None:
    if sum(value is not None for value in (nu, macs, params)) != 1:
        raise ConfigError(
            "Give exactly one of 'nu', 'macs' and 'params'.",
            seen=f"nu={nu!r}, macs={macs!r}, params={params!r}",
            hint="macs=0.5 keeps half of the whole model's multiply-accumulates; nu is what the "
            "dense network's complexity weighs against the loss",
        )


def _group_numbers(gated: GatedModule) -> Tensor:
    sizes = torch.tensor([group.size for group in gated.groups])
    return torch.arange(len(sizes)).repeat_interleave(sizes)
