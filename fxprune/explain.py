"""`explain`: what of a model is prunable, what is not, and why."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from fxprune._tables import Style, count, percent, shape_text, table
from fxprune.analysis.plan import ChannelGroup, FrozenAxis, Plan
from fxprune.analysis.policy import Attention
from fxprune.api import Ignore, auto_gate
from fxprune.errors import ConfigError
from fxprune.gated import GatedModule
from fxprune.inputs import ExampleInputs
from fxprune.measure import gated_inputs, input_shapes, module_kinds

__all__ = ["Explanation", "ModuleShare", "ParameterShare", "explain", "explain_gated"]

_SHOWN_AXES = 3


@dataclass(frozen=True, slots=True)
class ParameterShare:
    """A parameter and its prunable axes.

    Attributes
    ----------
    name : str
        Name within its module.
    shape : tuple of int
        Its shape.
    axes : tuple of int
        The axes that a group can shorten, the first one where only a branch takes the whole
        parameter; empty when nothing of it is prunable.
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModuleShare:
    """A module's own parameters and what of them is prunable.

    Attributes
    ----------
    name : str
        Path of the module; empty for the model itself.
    kind : str
        Its type.
    parameters : tuple of ParameterShare
        Parameters it holds itself, not those of its children.
    """

    name: str
    kind: str
    parameters: tuple[ParameterShare, ...]

    @property
    def params(self) -> int:
        """Number of parameters."""
        return sum(math.prod(p.shape) for p in self.parameters)

    @property
    def prunable_params(self) -> int:
        """Number of parameters in tensors with a prunable axis."""
        return sum(math.prod(p.shape) for p in self.parameters if p.axes)


@dataclass(frozen=True, slots=True)
class Explanation:
    """What is prunable in a model, what is frozen and why; `str` gives tables.

    Attributes
    ----------
    params : int
        Number of parameters.
    macs : int
        Multiply-accumulates of one forward of the unpruned model at `input_shapes`.
    prunable_params : float
        Share of the parameters, 0 to 1: a parameter is prunable when one of its axes is in a group,
        or when it goes with a branch.
    prunable_macs : float
        Share of the multiply-accumulates, 0 to 1, of operators with at least one prunable axis, or
        inside a branch.
    input_shapes : tuple of tuple of int
        Shapes of the inputs that `macs` holds for.
    groups : tuple of ChannelGroup
        What is kept or removed together.
    frozen : tuple of FrozenAxis
        What stays, with the reason.
    modules : tuple of ModuleShare
        Every module that holds parameters.
    """

    params: int
    macs: int
    prunable_params: float
    prunable_macs: float
    input_shapes: tuple[tuple[int, ...], ...]
    groups: tuple[ChannelGroup, ...]
    frozen: tuple[FrozenAxis, ...]
    modules: tuple[ModuleShare, ...]

    def __str__(self) -> str:
        return self._render("text")

    def to_markdown(self) -> str:
        """Return the tables in Markdown."""
        return self._render("markdown")

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values.

        Returns
        -------
        dict
            JSON-serialisable, with the names of the attributes as keys; shares are 0 to 1.
        """
        return {
            "params": self.params,
            "macs": self.macs,
            "prunable_params": self.prunable_params,
            "prunable_macs": self.prunable_macs,
            "input_shapes": [list(shape) for shape in self.input_shapes],
            "groups": [
                {
                    "name": group.name,
                    "kind": group.kind,
                    "size": group.size,
                    "members": [{"fqn": m.fqn, "dim": m.dim} for m in group.members],
                }
                for group in self.groups
            ],
            "frozen": [
                {
                    "fqn": axis.member.fqn,
                    "dim": axis.member.dim,
                    "reason": axis.reason,
                    "count": axis.count,
                    "size": axis.size,
                }
                for axis in self.frozen
            ],
            "modules": [
                {
                    "name": module.name,
                    "kind": module.kind,
                    "params": module.params,
                    "prunable_params": module.prunable_params,
                    "parameters": [
                        {"name": p.name, "shape": list(p.shape), "prunable_axes": list(p.axes)}
                        for p in module.parameters
                    ],
                }
                for module in self.modules
            ],
        }

    def _render(self, style: Style) -> str:
        parts = [("Summary", self._summary(style)), ("Modules", self._modules(style))]
        parts.append(("Groups", self._groups(style) if self.groups else "None."))
        parts.append(("Frozen axes", self._frozen(style) if self.frozen else "None."))
        mark = "## " if style == "markdown" else ""
        return "\n\n".join(f"{mark}{title}\n\n{body}" for title, body in parts)

    def _summary(self, style: Style) -> str:
        at = f"at input {', '.join(map(shape_text, self.input_shapes))}"
        rows = [
            ("parameters", count(self.params), percent(self.prunable_params)),
            (f"MACs {at}", count(self.macs), percent(self.prunable_macs)),
        ]
        return table(rows, ("", "total", "prunable"), style)

    def _modules(self, style: Style) -> str:
        rows = (
            (
                module.name or "(model)",
                module.kind,
                count(module.params),
                percent(module.prunable_params, module.params),
                ", ".join(_axes_text(p) for p in module.parameters if p.axes) or "nothing",
            )
            for module in self.modules
        )
        headers = ("module", "kind", "parameters", "prunable", "prunable axes")
        return table(rows, headers, style)

    def _groups(self, style: Style) -> str:
        rows = ((g.name, g.kind, g.size, _members_text(g)) for g in self.groups)
        return table(rows, ("group", "kind", "units", "axes"), style)

    def _frozen(self, style: Style) -> str:
        rows = ((axes, positions, axis.reason) for axes, positions, axis in _collapsed(self.frozen))
        return table(rows, ("axis", "positions", "why it stays"), style)


def explain(
    model: nn.Module,
    example_inputs: ExampleInputs | None = None,
    *,
    ignore: Sequence[Ignore] | Ignore = (),
    attention: Attention = "both",
    branches: bool = False,
) -> Explanation:
    """Say what of a model is prunable, what is frozen and why.

    Parameters
    ----------
    model : nn.Module, torch.fx.GraphModule or GatedModule
        Never changed.
    example_inputs : Tensor, tuple, list or dict, optional
        Only shapes and dtypes matter; guessed when left out. Not for a gated model, which has been
        analysed already.
    ignore : sequence of str, re.Pattern, module type or module
        What must keep its own output width, as for `fxprune.auto_gate`. Not for a gated model.
    attention : {"head", "head_dim", "both", "off"}
        What of attention to prune, as for `fxprune.auto_gate`. A gated model has its own.
    branches : bool
        Whether branches are prunable, as for `fxprune.auto_gate`. A gated model has its own.

    Returns
    -------
    Explanation
        ``print`` shows its tables.

    Raises
    ------
    ConfigError
        When `example_inputs` or `ignore` comes with a gated model, and as for `fxprune.auto_gate`.
    CaptureError
        When the model cannot be captured as a graph.
    InputError
        When it does not run on the example inputs, or none could be guessed.

    Examples
    --------
    >>> from torch import nn, zeros
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    >>> found = explain(net, zeros(1, 3, 8, 8))
    >>> round(found.prunable_params, 3), found.macs
    (0.985, 8928)
    >>> [str(axis) for axis in found.frozen][:1]
    ['0.weight[1]: it reads an input of the model']
    """
    if isinstance(model, GatedModule):
        if example_inputs is not None or ignore:
            raise ConfigError(
                "A gated model takes no 'example_inputs' and no 'ignore': it is analysed already.",
                hint="pass them to auto_gate, or explain the model that is not gated yet",
            )
        gated = model
    else:
        gated = auto_gate(
            model, example_inputs, ignore=ignore, attention=attention, branches=branches
        )
    return explain_gated(gated, model)


def explain_gated(gated: GatedModule, model: nn.Module) -> Explanation:
    """Explain a gated model, with the module types of the one it was made from; see `explain`."""
    modules = _module_shares(gated, model)
    params = sum(module.params for module in modules)
    prunable = sum(module.prunable_params for module in modules)
    macs = gated.cost_of(np.ones(gated.plan.n_units, dtype=bool)).macs
    terms = zip(gated.plan.macs.factors, gated.plan.macs.runs, strict=True)
    fixed = sum(factor for factor, runs in terms if not runs)
    return Explanation(
        params=params,
        macs=macs,
        prunable_params=prunable / params if params else 0.0,
        prunable_macs=(macs - fixed) / macs if macs else 0.0,
        input_shapes=input_shapes(gated_inputs(gated)),
        groups=gated.groups,
        frozen=gated.frozen,
        modules=modules,
    )


def _module_shares(gated: GatedModule, model: nn.Module) -> tuple[ModuleShare, ...]:
    """Gather the parameters by module; those the graph does not use are known from `frozen`.

    Types are those in `model`: what only holds parameters is a plain Module in the gated one.
    """
    plan = gated.plan
    inside = {m.fqn for g in plan.groups if g.kind == "branch" for m in g.members}
    unused = [axis.member.fqn for axis in plan.frozen]
    names = dict.fromkeys([*(name for name, _ in gated.named_parameters()), *unused])
    kinds = module_kinds(gated) | module_kinds(model)
    owned: dict[str, list[ParameterShare]] = {}
    for name in names:
        path, _, leaf = name.rpartition(".")
        shape = plan.shapes[name]
        axes = tuple(d for d in range(len(shape)) if _is_prunable(plan, name, d))
        share = ParameterShare(leaf, shape, axes or ((0,) if name in inside else ()))
        owned.setdefault(path, []).append(share)
    return tuple(
        ModuleShare(path, kinds.get(path, "unused"), tuple(parameters))
        for path, parameters in owned.items()
    )


def _is_prunable(plan: Plan, name: str, dim: int) -> bool:
    return plan.prunable(plan.axes.get((name, dim)))


def _axes_text(parameter: ParameterShare) -> str:
    return f"{parameter.name}[{','.join(map(str, parameter.axes))}]"


def _members_text(group: ChannelGroup) -> str:
    shown = ", ".join(map(str, group.members[:_SHOWN_AXES]))
    more = len(group.members) - _SHOWN_AXES
    return f"{shown} and {more} more" if more > 0 else shown


def _collapsed(frozen: Iterable[FrozenAxis]) -> list[tuple[str, str, FrozenAxis]]:
    """Give axes that differ only in the numbers within their names and reasons one row."""
    alike: dict[tuple[str, int, str, int, int], list[FrozenAxis]] = {}
    for axis in frozen:
        name, reason = (re.sub(r"\d+", "*", text) for text in (axis.member.fqn, axis.reason))
        key = (name, axis.member.dim, reason, axis.count, axis.size)
        alike.setdefault(key, []).append(axis)
    rows = []
    for axes in alike.values():
        more = f" and {len(axes) - 1} like it" if len(axes) > 1 else ""
        first = axes[0]
        rows.append((f"{first.member}{more}", f"{first.count} of {first.size}", first))
    return rows
