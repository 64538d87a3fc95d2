"""Models in the ways people write them: open gates change nothing, and compact equals gated."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import textwrap

import pytest
import torch
import torch.nn.functional as F
from gate_checks import assert_close, assert_cost, random_keep, run
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations, parametrize
from user_cases import CASES
from user_models import Case, Net

from fxprune import auto_gate
from fxprune.errors import ConfigError
from fxprune.gated import GatedModule


def _params() -> list[object]:
    return [
        pytest.param(
            case,
            id=name,
            marks=pytest.mark.xfail(reason=case.broken, strict=True) if case.broken else (),
        )
        for name, case in CASES.items()
    ]


def _inputs(case: Case) -> list[Tensor]:
    n, c, *pixels = case.shape
    shapes = [case.shape, (1, c, *pixels), (n + 1, c, *pixels)]
    if case.other_sizes:
        shapes.append((n, c, *(p + 4 for p in pixels)))
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(s, dtype=torch.float64, generator=generator) for s in shapes]


def _same_in_both_modes(
    actual: nn.Module, expected: nn.Module, inputs: list[Tensor], what: str
) -> None:
    for training in (False, True):
        for x in inputs:
            # running statistics move in training: every run gets modules of its own
            one, other = (copy.deepcopy(m).train(training) for m in (actual, expected))
            assert_close(
                run(one, x), run(other, x), f"{what}, training {training}, input {tuple(x.shape)}"
            )


def check(model: nn.Module, inputs: list[Tensor]) -> GatedModule:
    gated = auto_gate(model, inputs[0])
    _same_in_both_modes(gated, model, inputs, "open gates")
    for seed, share in enumerate((0.5, 0.8)):
        gated.set_keep(random_keep(gated, share, seed))
        compact = gated.compact()
        _same_in_both_modes(compact, gated, inputs, "compact")
        assert_cost(gated.eval(), compact.eval(), inputs[0])
    return gated


@pytest.mark.parametrize("case", _params())
def test_compact_computes_what_gated_computes(case: Case) -> None:
    torch.manual_seed(0)
    check(case.build().double().eval(), _inputs(case))


def _plain(**parts: nn.Module) -> Net:
    torch.manual_seed(0)
    return Net(lambda n, x: n.out(F.relu(n.b(n.a(x)))), parts).double().eval()


IMAGES = _inputs(Case(_plain))


class Twice(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w * 2


class ByFanIn(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w / w.shape[1]


def test_parametrized_weights_stay_prunable() -> None:
    model = _plain()
    parametrize.register_parametrization(model.a, "weight", Twice())
    parametrizations.weight_norm(model.b)
    assert check(model, IMAGES).groups


def test_parametrization_that_uses_the_number_of_channels() -> None:
    model = _plain()
    parametrize.register_parametrization(model.b, "weight", ByFanIn())
    check(model, IMAGES)


def test_hook_on_a_leaf_is_part_of_the_model() -> None:
    model = _plain()
    model.a.register_forward_hook(lambda module, args, out: out * 2)
    assert check(model, IMAGES).groups


def test_hook_that_uses_the_number_of_channels() -> None:
    model = _plain()
    model.a.register_forward_hook(lambda module, args, out: out / out.shape[1])
    check(model, IMAGES)


def test_hook_on_the_model_itself() -> None:
    model = _plain()
    model.register_forward_hook(lambda module, args, out: out * 2)
    with pytest.raises(ConfigError, match=r"forward hooks of its own[\s\S]*nn.Sequential"):
        auto_gate(model, IMAGES[0])
    check(nn.Sequential(model), IMAGES)


class OwnConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.out_channels


class OwnTracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, OwnConv) or super().is_leaf_module(m, module_qualified_name)


def test_leaf_that_subclasses_a_convolution() -> None:
    torch.manual_seed(0)
    model = (
        nn.Sequential(nn.Conv2d(3, 16, 3), OwnConv(16, 16, 1), nn.ReLU(), nn.Conv2d(16, 4, 1))
        .double()
        .eval()
    )
    check(fx.GraphModule(model, OwnTracer().trace(model)), IMAGES)


def test_requires_grad_and_layout_survive() -> None:
    model = _plain()
    model.b.requires_grad_(False)
    model.a.weight = nn.Parameter(
        model.a.weight.detach().transpose(2, 3).contiguous().transpose(2, 3)
    )
    gated = check(model.to(memory_format=torch.channels_last), IMAGES)
    assert {n for n, p in gated.compact().named_parameters() if not p.requires_grad} == {
        "b.weight",
        "b.bias",
    }


def test_returned_shape_of_a_hidden_value() -> None:
    model = (
        Net(lambda n, x: (n.out(n.b(n.a(x))), n.a(x).shape[1], n.a(x).shape), {}).double().eval()
    )
    gated = auto_gate(model, IMAGES[0])
    gated.set_keep(random_keep(gated, 0.5))
    assert gated.compact()(IMAGES[0])[1:] == gated(IMAGES[0])[1:]


def test_two_names_for_one_module() -> None:
    model = _plain()
    model.again = model.b
    check(model, IMAGES)


def test_pruning_what_is_pruned() -> None:
    gated = auto_gate(_plain(), IMAGES[0])
    gated.set_keep(random_keep(gated, 0.6))
    check(gated.compact(), IMAGES)


@pytest.mark.parametrize(
    "name",
    [
        "dense block",
        "channel shuffle",
        "layer norm used twice",
        "selective kernels",
        "unet, padded",
    ],
)
def test_gated_and_compact_pickle(name: str) -> None:
    case = CASES[name]
    x = _inputs(case)[0]
    gated = auto_gate(case.build().double().eval(), x)
    gated.set_keep(random_keep(gated, 0.5))
    compact = gated.compact()
    for module in (gated, compact):
        assert_close(run(pickle.loads(pickle.dumps(module)), x), run(module, x))


def test_optional_argument_left_out_does_no_harm() -> None:
    code = """
    import pickle, torch, fxprune
    class Optional(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.c = torch.nn.Conv2d(3, 4, 1)
        def forward(self, x, scale=None):
            return self.c(x) if scale is None else self.c(x) * scale
    x = torch.zeros(1, 3, 4, 4)
    pickle.loads(pickle.dumps(fxprune.auto_gate(Optional(), x).compact()))
    fxprune.auto_gate(torch.nn.Conv2d(3, 4, 1), x)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, capture_output=True)
