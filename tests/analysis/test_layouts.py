"""What operators make of meta tensors is remembered, and is what torch says."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxprune._compat import storage_key
from fxprune.analysis import layouts
from fxprune.analysis.layouts import RememberedLayouts, run_remembering

ADD = torch.ops.aten.add.Tensor


def _image(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])


CASES: dict[str, tuple[Callable[[Tensor], object], Tensor]] = {
    "norm": (_norm, _image(2, 8, 4, 4)),
    "norm of a permuted tensor": (_norm, _image(2, 8, 4, 4).permute(0, 2, 3, 1)),
    "batch norm": (lambda x: F.batch_norm(x, _image(8), _image(8)), _image(2, 8, 4, 4)),
    "channels last": (
        lambda x: F.conv2d(x, _image(4, 8, 3, 3)),
        _image(2, 8, 6, 6).contiguous(memory_format=torch.channels_last),
    ),
    "numbers of other kinds": (lambda x: (x * 2, x * 2.0, x * True), _image(3, dtype=torch.int64)),
    "several results": (lambda x: torch.max(x, 1), _image(2, 8)),
    "views": (lambda x: (x[:, 1:].t(), x.reshape(4, 4), x.expand(3, 2, 8)), _image(2, 8)),
    "parts": (lambda x: torch.cat(torch.split(x, 3, 1)[:2]), _image(2, 8)),
}


def _seen(value: object) -> list[tuple[object, ...]]:
    tensors = [value] if isinstance(value, Tensor) else list(value)  # type: ignore[call-overload]
    return [(t.shape, t.stride(), t.dtype, t.device.type, type(t)) for t in tensors]


@pytest.mark.parametrize("case", CASES)
def test_results_are_those_of_torch_at_the_first_call_and_after(case: str) -> None:
    run, x = CASES[case]
    with torch.no_grad():
        expected = _seen(run(x))
        with RememberedLayouts():
            assert _seen(run(x)) == expected
            assert _seen(run(x)) == expected


def test_a_known_result_is_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layouts, "_known", {})
    ran = []
    monkeypatch.setattr(ADD, "_op", _counting(ADD._op, ran))
    x, y = _image(2, 3), nn.Parameter(_image(3))
    made = [run_remembering(ADD, (x, y), {}) for _ in range(3)]
    assert len(ran) == 1
    assert len({storage_key(t) for t in made}) == 3
    run_remembering(ADD, (x, y), {"alpha": 2})
    run_remembering(ADD, (_image(2, 1).expand(2, 3), y), {})
    assert len(ran) == 3


def _counting(run: Callable[..., Tensor], ran: list[int]) -> Callable[..., Tensor]:
    def counted(*args: Tensor, **kwargs: float) -> Tensor:
        ran.append(1)
        return run(*args, **kwargs)

    return counted


def test_what_writes_views_or_computes_is_run() -> None:
    x = _image(2, 3)
    view = run_remembering(torch.ops.aten.view.default, (x, (3, 2)), {})
    assert storage_key(view) == storage_key(x)
    assert run_remembering(torch.ops.aten.add_.Tensor, (x, x), {}) is x
    real = torch.ones(2)
    for _ in range(2):
        assert run_remembering(ADD, (real, real), {}).tolist() == [2.0, 2.0]


def test_the_default_dtype_decides_too() -> None:
    x = _image(3, dtype=torch.int64)
    before = torch.get_default_dtype()
    divide = torch.ops.aten.div.Tensor
    found = [run_remembering(divide, (x, x), {}).dtype]
    try:
        torch.set_default_dtype(torch.float64)
        found.append(run_remembering(divide, (x, x), {}).dtype)
    finally:
        torch.set_default_dtype(before)
    assert found == [torch.float32, torch.float64]
