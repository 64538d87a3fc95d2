"""A captured graph computes what the model computes, whatever its code asks of traced values."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from typing import Any

import pytest
import torch
from gate_checks import assert_close, assert_equal_to_compact, run
from torch import Tensor, fx, nn
from torch.nn.utils import rnn

from fxprune import auto_gate
from fxprune._copies import share_tensors
from fxprune.capture import capture
from fxprune.capture.agreement import check_agreement
from fxprune.capture.operations import same_operations
from fxprune.errors import CaptureError


class Net(nn.Module):
    """Two convolutions, and a question in between."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 4, 3, padding=1)
        self.two = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        return self.two(y * 2 if self.ask(x, y) else y)

    def ask(self, x: Tensor, y: Tensor) -> bool:
        return False


def asking(question: Any, wanted: bool = True) -> Net:
    net = Net()
    net.ask = lambda x, y: bool(question(x, y)) == wanted  # type: ignore[method-assign]
    return net


def tries(x: Tensor, y: Tensor) -> bool:
    try:
        return y.nothing is not None  # type: ignore[attr-defined]
    except AttributeError:
        return False


def tries_all(x: Tensor, y: Tensor) -> bool:
    try:
        return bool((y > 0).nothing)  # type: ignore[attr-defined]
    except Exception:  # noqa: BLE001  # as users write it
        return False


def helped(value: Any) -> bool:
    return type(value) is Tensor


QUESTIONS = {
    "isinstance": lambda x, y: isinstance(y, Tensor),
    "isinstance of several": lambda x, y: isinstance(y, (list, tuple)),
    "isinstance of abstract": lambda x, y: isinstance(y, Mapping),
    "isinstance of iterable": lambda x, y: isinstance(y, Iterable),
    "is_tensor": lambda x, y: torch.is_tensor(y),
    "is a parameter": lambda x, y: isinstance(y, nn.Parameter),
    "__class__": lambda x, y: y.__class__ is Tensor,
    "type": lambda x, y: type(y) is Tensor,
    "type in a function": lambda x, y: helped(y),
    "name of the type": lambda x, y: type(y).__name__ == "Tensor",
    "is a type": lambda x, y: isinstance(type(y), type) and isinstance(Tensor, (type, int)),
    "hasattr": lambda x, y: hasattr(y, "nothing"),
    "hasattr of a tensor's": lambda x, y: hasattr(y, "shape"),
    "getattr": lambda x, y: getattr(y, "nothing", None) is None,
    "try": tries,
    "try all": tries_all,
    "none": lambda x, y: y is None,
    "identity": lambda x, y: y.contiguous() is y,
    "callable": lambda x, y: callable(y),
    "type of the shape": lambda x, y: isinstance(y.shape, tuple),
    "type of a size": lambda x, y: isinstance(y.shape[2], int),
    "even height": lambda x, y: x.shape[2] % 2 == 0,
    "wide": lambda x, y: int(x.shape[3] / 2) > 3,
    "rank": lambda x, y: len(x.shape) == 4,
    "result of a layer": lambda x, y: nn.MaxPool2d(2, return_indices=True)(y)[1] is None,
}


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS.keys())
def test_a_question_is_answered_as_for_the_value_or_refused(question: Any, wanted: bool) -> None:
    torch.manual_seed(0)
    model = asking(question, wanted).double()
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    try:
        gated = auto_gate(model, x)
    except CaptureError:
        return
    assert_close(run(gated, x), run(model, x))
    assert_close(run(gated.train(), x), run(model.train(), x))


@pytest.mark.parametrize("name", ["isinstance", "type", "is_tensor", "hasattr", "try"])
def test_what_can_be_answered_does_not_keep_a_model_from_symbolic_tracing(name: str) -> None:
    gated = auto_gate(asking(QUESTIONS[name]).double(), torch.rand(1, 3, 8, 8).double())
    assert gated.settings.captured == "symbolic tracing"
    assert_equal_to_compact(gated, torch.rand(2, 3, 16, 12, dtype=torch.float64))


def test_python_is_as_it_was_after_a_capture() -> None:
    for question in (QUESTIONS["type"], QUESTIONS["even height"]):
        capture(asking(question), ((torch.rand(2, 3, 8, 8),), {}))
    assert not {"isinstance", "type"} & set(globals())
    assert torch.is_tensor.__module__ == "torch"


class InPlace(Net):
    """Adds to a tensor that another name still holds."""

    def forward(self, x: Tensor) -> Tensor:
        y = before = self.one(x)
        y += 1
        return self.two(y + before)


class OfViews(Net):
    """Adds to a tensor of which it holds a view."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        half = y[:, :2]
        y += 1
        return self.two(y) + half.sum()


class Drawn(Net):
    """Leaves a layer out by chance, in training mode."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        return self.two(y) if self.training and random.random() < 0.5 else self.two(y * 2)


class Scaled(Net):
    """Multiplies by a constant that depends on the mode."""

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x) * torch.tensor([2.0 if self.training else 3.0]).to(x))


@pytest.mark.parametrize("kind", [InPlace, OfViews, Scaled])
def test_what_a_trace_gets_wrong_is_captured_in_another_way(kind: type[Net]) -> None:
    model, x = kind().double(), torch.rand(2, 3, 8, 8, dtype=torch.float64)
    gated = auto_gate(model, x)
    for training in (False, True):
        assert_close(run(gated.train(training), x), run(model.train(training), x))


def test_packed_sequences_are_refused_with_what_to_do() -> None:
    class Packs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 4)

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            packed = rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            y, _ = rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
            return self.head(y)

    with pytest.raises(CaptureError, match="give the recurrent layer the padded tensor"):
        auto_gate(Packs(), (torch.rand(2, 5, 6), torch.tensor([5, 3])))


def test_a_draw_is_no_constant() -> None:
    x = torch.rand(2, 3, 8, 8)
    gated = auto_gate(Drawn().eval(), x)
    assert run(gated, x)
    with pytest.raises(Exception, match="draws random numbers"):
        gated.train()(x)


def test_a_model_in_training_mode_is_compared_there_too() -> None:
    class Trains(Net):
        def ask(self, x: Tensor, y: Tensor) -> bool:
            return self.training and y.__class__ is Tensor

    model, x = Trains().double(), torch.rand(2, 3, 8, 8, dtype=torch.float64)
    with pytest.raises(CaptureError, match="in training mode the graph returns something else"):
        capture(share_tensors(model)[0], ((x,), {}), "symbolic tracing").check(((x,), {}))


def test_random_numbers_do_not_keep_modes_from_being_compared() -> None:
    class Drops(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.two(nn.functional.dropout(self.one(x), 0.5, self.training))

    model, given = Drops(), ((torch.rand(2, 3, 8, 8),), {})
    captured = capture(share_tensors(model)[0], given, "symbolic tracing")
    for training in (False, True):
        graph = captured.graphs["train" if training else "eval"]
        assert same_operations(model, captured.root, graph, given, training)
    assert not same_operations(model, captured.root, captured.graphs["eval"], given, True)


@pytest.mark.parametrize("change", ["number", "operator", "tensor", "order"])
def test_operators_that_differ_are_told_apart(change: str) -> None:
    class Plain(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.two(torch.sigmoid(self.one(x)) * 2)

    model, given = Plain(), ((torch.rand(2, 3, 8, 8),), {})
    graph = capture(model, given, "symbolic tracing").graphs["eval"]
    assert same_operations(model, model, graph, given, False)
    named = {str(node.target): node for node in graph.nodes}
    times = next(node for node in graph.nodes if node.args[1:] == (2,))
    if change == "number":
        times.args = (times.args[0], 3)
    elif change == "operator":
        next(n for n in graph.nodes if n.target is torch.sigmoid).target = torch.tanh
    elif change == "tensor":
        named["two"].target = "one2"
        model.one2 = nn.Conv2d(4, 4, 3, padding=1)
    else:
        times.args = (named["one"], 2)
    assert not same_operations(model, model, graph, given, False)
    with pytest.raises(CaptureError, match="in evaluation mode the graph"):
        check_agreement(model, model, {"eval": graph}, given, "hand")


def test_comparing_leaves_everything_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Conv2d(4, 2, 1))
    before = {name: (id(t), t.clone()) for name, t in model.state_dict(keep_vars=True).items()}
    graph = fx.symbolic_trace(model).graph
    check_agreement(model, model, {"eval": graph}, ((torch.rand(2, 3, 8, 8),), {}), "hand")
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert id(tensor) == before[name][0]
        assert torch.equal(tensor, before[name][1])
    assert model.training
