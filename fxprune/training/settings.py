"""What a training run is told: one frozen, checked dataclass."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fxprune.analysis.policy import Attention, check_attention
from fxprune.api import Ignore
from fxprune.errors import ConfigError
from fxprune.inputs import check_count
from fxprune.settings import check_round_to

__all__ = ["OPTIMIZERS", "SCHEDULES", "TrainSettings"]

OPTIMIZERS = {"sgd": 0.05, "adam": 1e-3, "adamw": 1e-3}
"""Known optimizers with their default learning rates."""

SCHEDULES = ("one-cycle", "cosine")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """Settings of `fxprune.training.train`.

    Attributes
    ----------
    macs, params : float in (0, 1]
        Share of the *whole* dense model to keep; give one of these, or `nu`.
    nu : float, optional
        For the method "complexity", in place of a share: what the dense network's complexity weighs
        against the loss.
    alpha, beta : float in [0, 1], optional
        For the method "complexity", see `fxprune.controllers.ComplexityAware`.
    epochs : int
        Passes over the training data, for each of the networks trained.
    method : str
        Name of the controller, a key of `fxprune.training.methods.METHODS`.
    every : int, optional
        Weight steps per controller step; the controller decides by default.
    controller_lr : float, optional
        Learning rate of the controller; it decides by default.
    held_back : float in (0, 0.5]
        Share of the training data that only the controller sees; "complexity" needs none.
    round_to : int
        Kept widths are multiples of this.
    ignore : tuple
        What keeps its width, as for `fxprune.auto_gate`.
    attention : {"head", "head_dim", "both", "off"}
        What of attention to prune, as for `fxprune.auto_gate`.
    branches : bool, optional
        Whether to prune branches as well, as for `fxprune.auto_gate`; by default with the method
        "complexity" only, unless `beta` is 0.
    shrink : bool
        Cut closed units out of the network as soon as they are settled, so that the rest of the run
        takes less time; it computes the same, but for what random layers draw.
    dense : bool
        First train the dense network the same way, for comparison; on all the training data.
    batch_size : int
        Samples per optimizer step, over all processes together.
    accumulate : int
        Parts in which the gradient of one optimizer step is computed, to save memory.
    optimizer : {"sgd", "adam", "adamw"}
        SGD is with momentum.
    lr : float, optional
        Peak learning rate; 0.05 for SGD, 0.001 for the others.
    momentum : float in [0, 1)
        For SGD.
    nesterov : bool
        Nesterov's momentum instead of the plain one, for SGD.
    weight_decay : float
    schedule : {"one-cycle", "cosine"}
        Course of the learning rate over the run; cosine warms up linearly first.
    warm_up : float in [0, 1)
        Share of a cosine run in which the rate rises.
    label_smoothing : float in [0, 1)
        Share of a label that goes to all classes alike; in the loss of the weights, not in the
        controller's.
    clip : float, optional
        Largest norm of the whole gradient.
    amp : bool
        Compute in bfloat16 where autocast does; weights and their updates stay float32.
    device : str
        ``"auto"`` is CUDA if there is any; else what `torch.device` takes.
    seed : int
        For the order of the data, the held-back part, random layers and the controller. Weights
        are the caller's.
    workers : int
        Processes that load data which is not in memory; results do not depend on it.
    checkpoint_every, log_every : int, optional
        Steps between checkpoints and between rows of the log; by default an epoch.

    Raises
    ------
    ConfigError
        If a value has the wrong type or is out of range.
    """

    macs: float | None = None
    params: float | None = None
    nu: float | None = None
    alpha: float | None = None
    beta: float | None = None
    epochs: int
    method: str = "ato"
    every: int | None = None
    controller_lr: float | None = None
    held_back: float = 0.05
    round_to: int = 1
    ignore: tuple[Ignore, ...] = ()
    attention: Attention = "both"
    branches: bool | None = None
    shrink: bool = True
    dense: bool = True
    batch_size: int = 64
    accumulate: int = 1
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float | None = None
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    schedule: Literal["one-cycle", "cosine"] = "one-cycle"
    warm_up: float = 0.05
    label_smoothing: float = 0.0
    clip: float | None = None
    amp: bool = False
    device: str = "auto"
    seed: int = 0
    workers: int = 0
    checkpoint_every: int | None = None
    log_every: int | None = None

    def __post_init__(self) -> None:
        """Check everything that can be checked without model and data."""
        self._check_aim()
        for name in ("epochs", "batch_size", "accumulate"):
            check_count(name, getattr(self, name))
        for name in ("seed", "workers"):
            check_count(name, getattr(self, name), least=0)
        for name in ("every", "checkpoint_every", "log_every"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        check_round_to(self.round_to)
        check_attention(self.attention)
        _check_choice("optimizer", self.optimizer, tuple(OPTIMIZERS))
        _check_choice("schedule", self.schedule, SCHEDULES)
        _check_number("held_back", self.held_back, above=0, most=0.5)
        _check_number("weight_decay", self.weight_decay, least=0)
        for name in ("momentum", "warm_up", "label_smoothing"):
            _check_number(name, getattr(self, name), least=0, below=1)
        for name in ("lr", "controller_lr", "clip"):
            if getattr(self, name) is not None:
                _check_number(name, getattr(self, name), above=0)
        for name in ("branches", "shrink", "dense", "amp", "nesterov"):
            given = getattr(self, name)
            if not isinstance(given, bool) and not (name == "branches" and given is None):
                raise ConfigError(
                    f"The '{name}' argument must be a bool.", seen=repr(getattr(self, name))
                )

    def _check_aim(self) -> None:
        """Check what is asked for, and that the method knows it."""
        own = {"nu": self.nu, "alpha": self.alpha, "beta": self.beta}
        given = [name for name, value in own.items() if value is not None]
        if given and self.method != "complexity":
            raise ConfigError(
                f"The '{given[0]}' argument is for the method 'complexity'.",
                seen=f"method={self.method!r}",
            )
        if sum(value is not None for value in (self.macs, self.params, self.nu)) != 1:
            also = ", or 'nu'" if self.method == "complexity" else ""
            raise ConfigError(
                f"Give exactly one of 'macs' and 'params'{also}.",
                seen=f"macs={self.macs!r}, params={self.params!r}"
                + (f", nu={self.nu!r}" if also else ""),
                hint="macs=0.5 keeps half of the whole model's multiply-accumulates",
            )

    @property
    def target(self) -> tuple[Literal["macs", "params"], float | None]:
        """The resource, and the share of it to keep; None where a price decides."""
        if self.params is not None:
            return "params", self.params
        if self.nu is not None and self.alpha is not None and self.alpha < 0.5:
            return "params", None
        return "macs", self.macs

    @property
    def with_branches(self) -> bool:
        """Whether branches are pruned as well."""
        if self.branches is None:
            return self.method == "complexity" and self.beta != 0
        return self.branches

    @property
    def rate(self) -> float:
        """The peak learning rate."""
        return OPTIMIZERS[self.optimizer] if self.lr is None else self.lr


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(
            f"The '{name}' argument must be one of {', '.join(choices)}.", seen=repr(value)
        )


def _check_number(
    name: str,
    value: object,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
    below: float = math.inf,
) -> None:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        finite = math.isfinite(value)
        if finite and least <= value <= most and above < value < below:
            return
    parts = [
        f"{word} {bound:g}"
        for word, bound in ((">=", least), (">", above), ("<=", most), ("<", below))
        if math.isfinite(bound)
    ]
    raise ConfigError(
        f"The '{name}' argument must be a number {' and '.join(parts)}.", seen=repr(value)
    )
