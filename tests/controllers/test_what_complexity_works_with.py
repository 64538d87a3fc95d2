"""Complexity-aware training with optimizers, schedules, precisions and compilers of all kinds."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from controllers.aware_loops import STEPS, AwareLoop, state_of
from controllers.loops import batch, differing

from fxprune import verify
from fxprune.errors import ConfigError


def one_cycle(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=STEPS + 1)


WAYS: dict[str, dict[str, Any]] = {
    "sgd, one cycle": {"scheduler": one_cycle},
    "nesterov, channels_last": {"optimizer": "nesterov", "memory_format": torch.channels_last},
    "adam, accumulation": {"optimizer": "adam", "accumulate": 2},
    "adamw, clipping": {"optimizer": "adamw", "clip": 0.5},
    "rmsprop": {"optimizer": "rmsprop"},
    "float64": {"dtype": torch.float64},
    "bfloat16 autocast": {"autocast": True},
}


@pytest.mark.parametrize("shrink", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_it_works_with(way: str, shrink: bool) -> None:
    loop = AwareLoop(gate={"branches": True}, shrink=shrink, **WAYS[way]).run()
    chosen = loop.aware.finish()
    assert abs(chosen.reached - 0.5) <= 0.005
    assert loop.gated.was_shrunk == shrink
    assert sum(loop.losses[-5:]) < 0.7 * sum(loop.losses[:5])
    x = batch(0)[0].to(dtype=loop.dtype, memory_format=loop.memory_format)
    assert verify(loop.gated.eval(), loop.gated.compact(), x).passed


# -- scaled losses -----------------------------------------------------------------------------------


def test_a_scaled_loss_counts_as_what_it_is() -> None:
    """Of a power of 2, so that nothing is rounded."""
    plain = AwareLoop(nu=3.0, shrink=True).run()
    scaled = AwareLoop(nu=3.0, shrink=True, scaler=torch.amp.GradScaler("cpu", 2.0**12)).run()
    plain.aware.finish()
    scaled.aware.finish()
    assert differing(state_of(plain), state_of(scaled)) == []
    assert plain.gated.was_shrunk


def test_where_the_scale_was_too_large_nothing_is_measured(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaler = torch.amp.GradScaler("cpu", 2.0**120, backoff_factor=2.0**-100)
    loop = AwareLoop(scaler=scaler)
    before, loss = loop.aware.state_dict()["search"]["slopes"], loop.loss
    with caplog.at_level(logging.WARNING, "fxprune"), monkeypatch.context() as patch:
        patch.setattr(loop, "loss", lambda x, y: 1e4 * loss(x, y))
        loop.step()
    assert [r.getMessage() for r in caplog.records] == [
        "step 1: the loss's gradient is not finite; skipped"
    ]
    after = loop.aware.state_dict()["search"]["slopes"]
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert loop.run().aware.finish().met


@pytest.mark.parametrize("wrong", [0, -1.0, float("nan"), float("inf"), "2", True, None])
def test_a_scale_must_be_a_number_above_0(wrong: Any) -> None:
    loop = AwareLoop("linear")
    loop.train_weights()
    before = state_of(loop)
    with pytest.raises(ConfigError, match="'loss_scale'"):
        loop.aware.step(loss_scale=wrong)
    assert differing(state_of(loop), before) == []
    loop.aware.step()
    assert loop.run().aware.finish().met


# -- torch.compile -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_model_shrinks_and_trains_to_the_same_end() -> None:
    torch._dynamo.reset()
    options: dict[str, Any] = {"gate": {"branches": True}, "macs": 0.3, "shrink": True}
    plain = AwareLoop(**options)
    compiled = AwareLoop(
        **options, wrap=lambda m: torch.compile(m, backend="eager", fullgraph=True)
    )
    sizes = set()
    for _ in range(STEPS):
        plain.step()
        compiled.step()
        sizes.add(compiled.gated.plan.n_units)
    assert len(sizes) >= 3, "the whole one, and at least two smaller ones"
    for loop in (plain, compiled):
        loop.aware.finish()
    assert differing(state_of(plain), state_of(compiled)) == []
    torch._dynamo.reset()
