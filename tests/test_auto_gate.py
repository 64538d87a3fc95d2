"""`auto_gate`: it never touches the caller's model, and says what is wrong with what it was given."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from gate_checks import assert_close, assert_equal_to_compact, random_keep, run
from small_nets import AuxHead, LayerNormMlp, Residual, chain, image, rows
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from fxprune.api import auto_gate
from fxprune.errors import CaptureError, ConfigError, FxpruneError, InputError


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Note which objects a model is made of, what is in them, and how they behave."""
    tensors = [*model.named_parameters(remove_duplicate=False)]
    tensors += [*model.named_buffers(remove_duplicate=False)]
    return {
        "tensors": [(n, id(t), t._version, t.requires_grad, t.grad) for n, t in tensors],
        "modules": [
            (n, id(m), type(m), m.training, sorted(m.__dict__), len(m._forward_hooks))
            for n, m in model.named_modules()
        ],
    }


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Check that a model is bit for bit, and object for object, what it was."""
    before, state = snapshot(model), copy.deepcopy(model.state_dict())
    yield
    assert snapshot(model) == before
    after = model.state_dict()
    assert list(after) == list(state)
    assert all(
        torch.equal(after[name], tensor) for name, tensor in state.items() if not tensor.is_meta
    )


@contextmanager
def refused(model: nn.Module, kind: type[FxpruneError], message: str) -> Iterator[None]:
    with untouched(model), pytest.raises(kind, match=message):
        yield


# -- what is accepted ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("make", [Residual, AuxHead, chain])
def test_the_model_is_untouched(make: Callable[[], nn.Module], training: bool) -> None:
    model, x = make().train(training), image()
    with untouched(model):
        gated = auto_gate(model, x)
        assert gated.training is training
        gated.set_keep(random_keep(gated, 0.5))
        run(gated, x)
        run(gated.compact(), x)
        with torch.no_grad():
            for parameter in gated.parameters():
                parameter.zero_()


def test_a_layer_norm_of_the_model_stays_plain() -> None:
    model = LayerNormMlp()
    with untouched(model):
        auto_gate(model, rows())


@pytest.mark.parametrize("how", ["tensor", "tuple", "list", "dict", "none"])
def test_ways_to_give_inputs(how: str) -> None:
    model, x = Residual(), image()
    example = {"tensor": x, "tuple": (x,), "list": [x], "dict": {"x": x}, "none": None}[how]
    gated = auto_gate(model, example)
    assert [group.name for group in gated.groups] == ["stem", "inner"]
    assert_close(run(gated, x), run(model, x))


def test_the_example_input_is_not_changed_and_its_values_do_not_matter() -> None:
    x = image()
    before = x.clone()
    assert (
        auto_gate(Residual(), x).groups
        == auto_gate(Residual(), torch.full_like(x, torch.nan)).groups
    )
    assert torch.equal(x, before)


def test_a_traced_model_is_accepted() -> None:
    model, x = Residual(), image()
    traced = torch.fx.symbolic_trace(model)
    text = str(traced.graph)
    with untouched(traced):
        gated = auto_gate(traced, x)
        assert gated.groups == auto_gate(model, x).groups
    assert str(traced.graph) == text
    gated.set_keep(random_keep(gated, 0.5))
    assert_equal_to_compact(gated, x)


class Options(nn.Module):
    """Two inputs, an option and an input that may be left out; a nested output."""

    def __init__(self) -> None:
        super().__init__()
        self.make, self.read, self.table = nn.Linear(6, 8), nn.Linear(8, 3), nn.Embedding(5, 8)
        self.double()

    def forward(
        self, x: Tensor, at: Tensor, scale: float = 2.0, extra: Tensor | None = None
    ) -> Any:
        y = self.make(x) + self.table(at)
        if extra is not None:
            y = y + extra
        return {"y": self.read(y * scale), "sums": [y.sum(1)]}


def test_several_inputs_and_nested_outputs() -> None:
    model, x, at = Options(), rows(), torch.arange(5)
    for example in ((x, at), {"x": x, "at": at}):
        gated = auto_gate(model, example)
        assert [group.name for group in gated.groups] == ["make"]
        assert_close(run(gated, x, at), run(model, x, at))
        gated.set_keep(random_keep(gated, 0.5))
        assert gated(x=x, at=at).keys() == {"y", "sums"}
        assert_equal_to_compact(gated, x, at)
    extra = auto_gate(model, (x, at, 2.0, torch.zeros(5, 8, dtype=torch.float64)))
    assert extra.groups == ()


@pytest.mark.parametrize(
    "ignore",
    ["inner", "inner.weight", re.compile("inn"), ("inner",), [re.compile(r"^inner\.")]],
    ids=str,
)
def test_ignored_by_name(ignore: Any) -> None:
    model, x = Residual(), image()
    with untouched(model):
        gated = auto_gate(model, x, ignore=ignore)
    assert [group.name for group in gated.groups] == ["stem"]
    (frozen,) = [f for f in gated.frozen if str(f.member) == "inner.weight[0]"]
    assert frozen.reason == "the caller asked to ignore it"


def test_ignored_by_type_and_by_module() -> None:
    model, x = Residual(), image()
    assert auto_gate(model, x, ignore=nn.Conv2d).groups == ()
    names = [group.name for group in auto_gate(model, x, ignore=model.inner).groups]
    assert names == ["stem"]
    assert auto_gate(model, x, ignore=model).groups == ()
    assert auto_gate(model, x, ignore=(nn.BatchNorm2d, "inner")).groups == ()


def test_the_input_side_of_an_ignored_layer_follows_its_producer() -> None:
    gated = auto_gate(Residual(), image(), ignore="outer")
    assert ("outer.weight", 1) in {(m.fqn, m.dim) for g in gated.groups for m in g.members}


# -- what is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("thing", "seen"),
    [("resnet18", "type str"), (nn.Linear, "type type"), (None, "NoneType"), (torch.relu, "relu")],
)
def test_what_is_no_model(thing: Any, seen: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"'model' parameter[\s\S]*{seen}[\s\S]*build the model first"
    ):
        auto_gate(thing)


def test_a_model_that_is_gated_already() -> None:
    gated = auto_gate(Residual(), image())
    with refused(gated, ConfigError, r"gated already[\s\S]*compact\(\)"):
        auto_gate(gated, image())


def test_a_model_on_the_meta_device() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, device="meta"))
    with refused(model, ConfigError, r"meta device[\s\S]*1.weight[\s\S]*to_empty"):
        auto_gate(model, torch.zeros(1, 3))


class NoCopy(nn.Linear):
    def __deepcopy__(self, memo: dict[int, Any]) -> NoCopy:
        raise RuntimeError("not this one")


def test_a_model_that_cannot_be_copied() -> None:
    model = NoCopy(3, 4)
    with refused(model, ConfigError, r"NoCopy cannot be copied[\s\S]*not this one"):
        auto_gate(model, torch.zeros(1, 3))


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        if y.sum() > 0:  # the line that must be named
            return y
        return x


class Raises(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        raise KeyError("own trouble")


def line_of(kind: type[nn.Module], text: str) -> int:
    code = kind.forward.__code__
    with open(code.co_filename, encoding="utf-8") as file:
        lines = file.read().splitlines()
    return next(i for i, line in enumerate(lines, 1) if i > code.co_firstlineno and text in line)


def test_a_forward_that_cannot_be_traced() -> None:
    model = Branch()
    at = line_of(Branch, "if y.sum()")
    message = (
        rf"Branch cannot be captured[\s\S]*test_auto_gate.py:{at} in forward[\s\S]*if y.sum\(\) > 0"
    )
    with refused(model, CaptureError, message):
        auto_gate(model, torch.zeros(1, 3))


def test_a_forward_that_raises() -> None:
    model = Raises()
    at = line_of(Raises, "raise KeyError")
    with refused(
        model, InputError, rf"KeyError: 'own trouble'[\s\S]*test_auto_gate.py:{at} in forward"
    ):
        auto_gate(model, torch.zeros(1, 3))


X = torch.zeros(1, 3, 6, 6, dtype=torch.float64)
BAD_INPUTS = {
    "another width": (
        torch.zeros(1, 4, 6, 6).double(),
        r"does not run[\s\S]*stem[\s\S]*\(1, 4, 6, 6\)",
    ),
    "another rank": (torch.zeros(1, 3).double(), r"does not run[\s\S]*stem[\s\S]*\(1, 3\)"),
    "too many": ((X, X), "takes 1 inputs, 2 were given"),
    "a wrong name": ({"y": X}, "no example input for the argument 'x'"),
    "one name too many": ({"x": X, "y": X}, "no argument 'y'"),
    "no tensor": ((), r"hold no tensor"),
    "a number": (3, r"must be a tensor, a tuple, a list or a dict[\s\S]*int"),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_example_inputs_that_do_not_fit(name: str) -> None:
    example, message = BAD_INPUTS[name]
    model = Residual()
    with refused(model, InputError, message):
        auto_gate(model, example)


def test_the_line_of_the_node_that_does_not_run_is_named() -> None:
    model = Residual()
    at = line_of(Residual, "self.stem(x)")
    with refused(model, InputError, rf"small_nets.py:{at}\b"):
        auto_gate(model, torch.zeros(1, 4, 6, 6, dtype=torch.float64))


def test_inputs_that_cannot_be_guessed() -> None:
    model: nn.Module = Options()
    with refused(model, InputError, r"2 inputs[\s\S]*x, at[\s\S]*pass example_inputs"):
        auto_gate(model)
    model = nn.ReLU()
    with refused(model, InputError, "no convolution, linear"):
        auto_gate(model)
    model = AuxHead().float()
    with refused(model, InputError, r"no guessed input shape fits[\s\S]*tried \(1, 3, 224, 224\)"):
        auto_gate(model)


@pytest.mark.parametrize(
    ("ignore", "message"),
    [
        ("nothere", r"'nothere' of 'ignore' matches no[\s\S]*stem.weight"),
        ("", "'' of 'ignore' matches no"),
        (re.compile("zzz"), r"re.compile\('zzz'\)[\s\S]*matches no"),
        (nn.Conv3d, r"Conv3d[\s\S]*matches no"),
        (nn.Linear(2, 2), r"Linear\(in_features=2[\s\S]*matches no"),
        (("stem", "nothere"), "'nothere' of 'ignore' matches no"),
        ((3,), r"takes names, compiled patterns[\s\S]*3 of type int"),
        (3, r"takes names, compiled patterns[\s\S]*3 of type int"),
    ],
    ids=str,
)
def test_ignore_entries_that_are_wrong(ignore: Any, message: str) -> None:
    model = Residual()
    with refused(model, ConfigError, message):
        auto_gate(model, image(), ignore=ignore)


def test_the_compact_form_of_a_net_that_depends_on_its_mode_can_be_gated_again() -> None:
    x = image()
    once = auto_gate(AuxHead(), x)
    once.set_keep(random_keep(once, 0.7))
    twice = auto_gate(once.compact(), x)
    assert len(twice.groups) == len(once.groups)


def test_the_callers_random_numbers_are_left_alone():
    """The analysis tries foreign modules, here one that draws, on random values of its own."""
    net = nn.Sequential(nn.Conv2d(3, 8, 1), StochasticDepth(0.5, "row"), nn.Conv2d(8, 2, 1))
    before = torch.get_rng_state()
    assert auto_gate(net, torch.zeros(2, 3, 4, 4)).groups
    assert torch.equal(torch.get_rng_state(), before)
