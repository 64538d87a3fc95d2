"""Every gated twin against its definition: the plain operator on what is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gate_checks import assert_close
from torch import Tensor, fx, nn

from fxprune.errors import ConfigError, InternalError
from fxprune.statistics import (
    find_twin,
    is_gated,
    plain_type,
    spelling,
    spelling_of,
    to_gated,
    to_plain,
    twin,
)

pytestmark = pytest.mark.filterwarnings("ignore:Implicit dimension choice")

ATEN = torch.ops.aten
KEEP = torch.tensor([1, 0, 1, 1, 0, 1, 0, 1], dtype=torch.bool)
EVERY_SECOND_PAIR = torch.tensor([1, 0, 1, 0, 1, 0, 1, 0], dtype=torch.bool)

Call = Callable[..., Any]


def values(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


W, B = values(8, seed=1), values(8, seed=2)

# name: operator, arguments by the width of axis 1, whether the result has that axis
PIXELS: dict[str, tuple[Any, Callable[[Tensor], tuple[Any, ...]], dict[str, Any], bool]] = {
    "mean": (torch.mean, lambda k: (1,), {}, False),
    "mean, axis kept": (torch.mean, lambda k: ((1, 2),), {"keepdim": True}, False),
    "mean of all": (torch.mean, lambda k: (), {}, False),
    "mean, NumPy's names": (torch.mean, lambda k: (), {"axis": 1, "keepdims": True}, False),
    "mean in another dtype": (torch.mean, lambda k: (1,), {"dtype": torch.float64}, False),
    "mean, method": ("mean", lambda k: (-3, True), {}, False),
    "mean, ATen": (ATEN.mean.dim, lambda k: ([1], True), {}, False),
    "mean of all, ATen": (ATEN.mean.default, lambda k: (), {}, False),
    "var": (torch.var, lambda k: (1,), {}, False),
    "var of all": (torch.var, lambda k: (), {}, False),
    "var, biased": (torch.var, lambda k: ((1, 3), False, True), {}, False),
    "var of all, biased": (torch.var, lambda k: (False,), {}, False),
    "var, corrected": (torch.var, lambda k: (1,), {"correction": 0, "keepdim": True}, False),
    "var, method": ("var", lambda k: (), {"dim": 1, "unbiased": False}, False),
    "var, ATen": (ATEN.var.correction, lambda k: ([1],), {"correction": 1}, False),
    "var over an axis, ATen": (ATEN.var.dim, lambda k: ([1], False, True), {}, False),
    "std": (torch.std, lambda k: (1,), {}, False),
    "std, method": ("std", lambda k: ((1, 2, 3), True, True), {}, False),
    "std, ATen": (ATEN.std.correction, lambda k: ([1],), {"correction": 0}, False),
    "var and mean": (torch.var_mean, lambda k: (1,), {}, False),
    "var and mean, ATen": (ATEN.var_mean.correction, lambda k: ([1],), {"correction": 0}, False),
    "std and mean": (torch.std_mean, lambda k: (1,), {"keepdim": True}, False),
    "amax": (torch.amax, lambda k: (1,), {}, False),
    "amax, ATen": (ATEN.amax.default, lambda k: ([1], True), {}, False),
    "amin": ("amin", lambda k: ((1, 2), True), {}, False),
    "max of all": (torch.max, lambda k: (), {}, False),
    "min of all": ("min", lambda k: (), {}, False),
    "softmax": (F.softmax, lambda k: (1,), {}, True),
    "softmax, torch's": (torch.softmax, lambda k: (1, torch.float64), {}, True),
    "softmax, method": ("softmax", lambda k: (), {"dim": -3}, True),
    "softmax, ATen": (ATEN.softmax.int, lambda k: (1,), {}, True),
    "softmax without an axis": (F.softmax, lambda k: (None,), {}, True),
    "log softmax": (F.log_softmax, lambda k: (1,), {"dtype": torch.float64}, True),
    "log softmax, method": ("log_softmax", lambda k: (1,), {}, True),
    "log-sum-exp": (torch.logsumexp, lambda k: (1,), {}, False),
    "log-sum-exp over several": ("logsumexp", lambda k: ((1, 2), True), {}, False),
    "batch norm": (F.batch_norm, lambda k: (None, None), {"training": True}, True),
    "group norm": (F.group_norm, lambda k: (1, W[k], B[k]), {}, True),
    "group norm, ATen": (ATEN.group_norm.default, lambda k: (1, W[k], None, 1e-5, True), {}, True),
    "group norm, torch's": (torch.group_norm, lambda k: (1,), {"eps": 0.1}, True),
}
ROWS: dict[str, tuple[Any, Callable[[Tensor], tuple[Any, ...]], dict[str, Any], bool]] = {
    "layer norm": (F.layer_norm, lambda k: ((int(k.sum()),), W[k], B[k], 1e-3), {}, True),
    "layer norm, plain": (torch.layer_norm, lambda k: ([int(k.sum())],), {}, True),
    "layer norm, ATen": (
        ATEN.layer_norm.default,
        lambda k: ([int(k.sum())], W[k], B[k], 1e-3, True),
        {},
        True,
    ),
    "rms norm": (F.rms_norm, lambda k: ((int(k.sum()),), W[k]), {}, True),
    "rms norm, torch's": (torch.rms_norm, lambda k: ([int(k.sum())],), {"eps": 0.1}, True),
    "rms norm, ATen": (ATEN.rms_norm.default, lambda k: ([int(k.sum())], W[k], 0.1), {}, True),
}
ALL = torch.ones(8, dtype=torch.bool)


def call(target: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Call a function, or the method of a name."""
    return (
        getattr(x, target)(*args, **kwargs)
        if isinstance(target, str)
        else target(x, *args, **kwargs)
    )


def twin_of(target: Any, *args: Any, **kwargs: Any) -> Call:
    graph = fx.Graph()
    op = "call_method" if isinstance(target, str) else "call_function"
    node = graph.create_node(op, target, (graph.placeholder("x"), *args), kwargs)
    found = find_twin(node)
    assert found is not None
    return found


def cases() -> dict[str, tuple[Any, ...]]:
    pixels = {name: (*row, 1, (4, 8, 3, 5), (8, 1, 1)) for name, row in PIXELS.items()}
    return pixels | {name: (*row, 2, (4, 5, 8), (8,)) for name, row in ROWS.items()}


CASES = cases()


def taken(result: Any, dim: int, keep: Tensor | None) -> list[Tensor]:
    results = list(result) if isinstance(result, tuple) else [result]
    at = None if keep is None else torch.where(keep)[0]
    return results if at is None else [r.index_select(dim, at) for r in results]


@pytest.mark.parametrize("name", CASES)
def test_with_a_hard_mask_it_is_the_plain_operator_on_what_is_kept(name: str) -> None:
    target, arguments, kwargs, wide, dim, shape, broadcast = CASES[name]
    x, gated = values(*shape), twin_of(target, *arguments(ALL), **kwargs)
    cut = x.index_select(dim, torch.where(KEEP)[0])
    expected = taken(call(target, cut, *arguments(KEEP), **kwargs), dim, None)
    closed = torch.where(~KEEP)[0].tolist()
    for junk in (1.0, 1e300, float("inf"), float("nan")):  # what is closed is not even looked at
        y = x.index_fill(dim, torch.tensor(closed), junk)
        actual = gated(y, *arguments(ALL), mask=KEEP.view(broadcast), **kwargs)
        assert_close(taken(actual, dim, KEEP if wide else None), expected, str(junk))
    as_numbers = gated(x, *arguments(ALL), mask=KEEP.view(broadcast).double(), **kwargs)
    assert_close(taken(as_numbers, dim, KEEP if wide else None), expected, "soft gates at 0 and 1")


@pytest.mark.parametrize("name", CASES)
def test_without_a_mask_it_is_the_plain_operator(name: str) -> None:
    target, arguments, kwargs, _, dim, shape, _ = CASES[name]
    x, gated = values(*shape), twin_of(target, *arguments(ALL), **kwargs)
    assert_close(
        taken(gated(x, *arguments(ALL), **kwargs), dim, None),
        taken(call(target, x, *arguments(ALL), **kwargs), dim, None),
    )


@pytest.mark.parametrize("name", CASES)
def test_soft_masks_have_the_right_gradient(name: str) -> None:
    target, arguments, kwargs, wide, _, shape, broadcast = CASES[name]
    gated = twin_of(target, *arguments(ALL), **kwargs)
    x = values(2, *shape[1:]).requires_grad_()
    mask = torch.linspace(0.3, 0.9, 8, dtype=torch.float64).requires_grad_()

    def loss(x: Tensor, mask: Tensor) -> Tensor:
        results = gated(x, *arguments(ALL), mask=mask.view(broadcast), **kwargs)
        results = results if isinstance(results, tuple) else (results,)
        weight = mask.view(broadcast) if wide else 1
        return sum(((weight * r).sin().sum() for r in results), torch.zeros(()))

    assert torch.autograd.gradcheck(loss, (x, mask), fast_mode=True)


@pytest.mark.parametrize("name", CASES)
def test_closed_soft_gates_give_finite_gradients(name: str) -> None:
    """A straight-through gate is 0 or 1 in the forward pass and gets a gradient all the same."""
    target, arguments, kwargs, wide, _, shape, broadcast = CASES[name]
    gated = twin_of(target, *arguments(ALL), **kwargs)
    x = (values(*shape) * 30).requires_grad_()
    mask = KEEP.double().requires_grad_()
    results = gated(x, *arguments(ALL), mask=mask.view(broadcast), **kwargs)
    for result in results if isinstance(results, tuple) else (results,):
        (result * (mask.view(broadcast) if wide else 1)).sum().backward(retain_graph=True)
    assert x.grad is not None
    assert mask.grad is not None
    assert x.grad.isfinite().all()
    assert mask.grad.isfinite().all()


@pytest.mark.parametrize("groups", [2, 4])
def test_a_group_norm_counts_in_each_group(groups: int) -> None:
    x, keep = values(3, 8, 4), EVERY_SECOND_PAIR
    gated = twin_of(F.group_norm, groups)
    expected = F.group_norm(x[:, keep], groups, W[keep], B[keep])
    assert_close([gated(x, groups, W, B, mask=keep[:, None])[:, keep]], [expected])


@pytest.mark.parametrize("soft", [False, True])
def test_a_group_of_which_nothing_is_kept_does_no_harm(soft: bool) -> None:
    """A NaN there would reach the weights in the backward pass, though its channels are gated."""
    x, keep = values(3, 8, 4).requires_grad_(), torch.arange(8) >= 4
    mask = (keep.double() if soft else keep)[:, None]
    y = twin_of(F.group_norm, 2)(x, 2, W, B, mask=mask)
    torch.where(keep[:, None], y, 0).sum().backward()
    assert y.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sums_in_single(name: str, dtype: torch.dtype) -> None:
    """Of equal numbers that half precision cannot add up, the statistic is exact."""
    target, arguments, kwargs, wide, dim, shape, broadcast = CASES[name]
    if kwargs.get("dtype") is torch.float64 or torch.float64 in arguments(ALL):
        pytest.skip("asks for another dtype")
    args = [a.to(dtype) if isinstance(a, Tensor) else a for a in arguments(ALL)]
    gated = twin_of(target, *args, **kwargs)
    x = values(*shape).to(dtype)
    result = taken(
        gated(x, *args, mask=KEEP.view(broadcast), **kwargs), dim, KEEP if wide else None
    )
    high = [a.float() if isinstance(a, Tensor) else a for a in args]
    wanted = taken(
        gated(x.float(), *high, mask=KEEP.view(broadcast), **kwargs), dim, KEEP if wide else None
    )
    for actual, expected in zip(result, wanted, strict=True):
        assert actual.dtype is dtype
        step = torch.finfo(dtype).eps * expected.abs().max().item()
        torch.testing.assert_close(actual.float(), expected, rtol=0, atol=2 * step)


def test_integers_have_a_maximum_too() -> None:
    x = torch.tensor([[5, 9, 2]])
    keep = torch.tensor([True, False, True])
    assert twin_of(torch.amax)(x, 1, mask=keep).tolist() == [5]
    assert twin_of(torch.amin)(-x, 1, mask=keep.float()).tolist() == [-5]


# -- the table -----------------------------------------------------------------------------------------------


def node_of(call_it: Callable[[fx.Proxy], Any]) -> fx.Node:
    graph = fx.Graph()
    x = fx.Proxy(graph.placeholder("x"))
    made = call_it(x)
    graph.output(made.node if isinstance(made, fx.Proxy) else [m.node for m in made])
    return next(n for n in graph.nodes if n.name.startswith(("max", "mean", "batch")))


@pytest.mark.parametrize(
    ("call_it", "has"),
    [
        (lambda x: x.max(1)[0], True),
        (lambda x: x.max(1).values, True),
        (lambda x: torch.max(x, dim=1)[0], True),
        (lambda x: x.max(), True),
        (lambda x: x.max(1)[1], False),
        (lambda x: x.max(1).indices, False),
        (lambda x: x.max(dim=1), False),
        (lambda x: torch.max(x, x).relu(), False),
        (lambda x: torch.mean(x, 1, out=x), False),
        (lambda x: F.batch_norm(x, None, None, training=True), True),
        (lambda x: F.batch_norm(x, x, x, training=True), False),
        (lambda x: torch.batch_norm(x, None, None, None, None, True, 0.1, 1e-5, False), True),
        (lambda x: torch.batch_norm(x, None, None, x, x, True, 0.1, 1e-5, False), False),
    ],
)
def test_what_has_a_twin(call_it: Callable[[fx.Proxy], Any], has: bool) -> None:
    assert (find_twin(node_of(call_it)) is not None) is has


def test_spellings_have_names_of_their_own() -> None:
    targets = [row[0] for row in CASES.values()]
    keys = {("call_method" if isinstance(t, str) else "call_function", t) for t in targets}
    assert {spelling(spelling_of(*key)) for key in keys} == keys
    with pytest.raises(InternalError, match="spelled 'nothing'"):
        spelling("nothing")


def test_an_operator_has_one_twin() -> None:
    with pytest.raises(ConfigError, match=r"two gated twins[\s\S]*gated_mean and"):
        twin("mean")(lambda x, mask=None: x)


@pytest.mark.parametrize(
    "plain",
    [nn.LayerNorm(8), nn.RMSNorm(8), nn.GroupNorm(2, 8), nn.Softmax(1), nn.LogSoftmax(1)],
    ids=lambda m: type(m).__name__,
)
def test_module_twins(plain: nn.Module) -> None:
    gated = to_gated(plain)
    assert gated is not None
    assert is_gated(gated)
    assert not is_gated(plain)
    assert to_gated(gated) is gated
    assert plain_type(gated) is type(plain) is type(to_plain(gated)) is plain_type(plain)
    assert list(gated.parameters()) == list(plain.parameters())
    x = torch.randn(4, 8)
    assert torch.equal(gated(x), plain(x))
    assert torch.equal(gated(x, None), plain(x))
    mask = torch.arange(8) < 6
    assert not torch.equal(gated(x, mask), plain(x))


def test_other_modules_have_no_twin() -> None:
    class Mine(nn.LayerNorm):
        pass

    assert to_gated(nn.Linear(2, 2)) is None
    assert to_gated(Mine(3)) is None
