"""Auto-Train-Once with optimizers, schedules, precisions and compilers of all kinds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from controllers.loops import (
    STEPS,
    Loop,
    batch,
    differing,
    held_back,
    nothing_random,
    state_of,
)
from controllers.outcome import check_result
from torch import Tensor, nn

from fxprune import auto_gate
from fxprune.controllers import AutoTrainOnce

# -- what it works with ------------------------------------------------------------------------------


def one_cycle(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=STEPS + 1)


def cosine(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)


WAYS: dict[str, dict[str, Any]] = {
    "sgd, one cycle": {"scheduler": one_cycle},
    "sgd, cosine down to 0": {"scheduler": cosine},
    "sgd, half-space": {"projection": "half-space"},
    "nesterov, channels_last": {"optimizer": "nesterov", "memory_format": torch.channels_last},
    "adam, accumulation": {"optimizer": "adam", "accumulate": 2},
    "adamw, clipping": {"optimizer": "adamw", "clip": 0.5},
    "adamw, cosine, half-space": {"optimizer": "adamw", "scheduler": cosine, "projection": "half-space"},
    "rmsprop": {"optimizer": "rmsprop"},
    "float64": {"dtype": torch.float64},
    "bfloat16 autocast": {"autocast": True},
    "two rates": {
        "optimizer": lambda p: torch.optim.SGD([{"params": (q := list(p))[::2]}, {"params": q[1::2], "lr": 0.02}], 0.05, momentum=0.9)
    },
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_it_works_with(way: str) -> None:
    loop = Loop("residual", **WAYS[way])
    place = {n: (p.dtype, p.stride(), p.data_ptr()) for n, p in loop.gated.named_parameters()}
    loop.run()
    check_result(loop)
    assert sum(loop.losses[-5:]) < 0.7 * sum(loop.losses[:5])
    now = {n: (p.dtype, p.stride(), p.data_ptr()) for n, p in loop.gated.named_parameters()}
    assert now == place


@pytest.mark.parametrize("kind", ["residual", "linear"])
def test_the_defaults(kind: str) -> None:
    """Nothing but what must be given: the pacing comes from the length of the run."""
    loop = Loop(kind, steps=40)
    loop.ato = AutoTrainOnce(loop.gated, loop.optimizer, steps=40, macs=0.5)
    check_result(loop.run())
    assert loop.asked
    assert loop.losses[-1] < 0.5 * loop.losses[0]


def test_autocast_around_the_whole_step() -> None:
    loop = Loop("residual", autocast=True, steps=24)
    while loop.ato.steps_done < 24:
        loop.train_weights()
        with torch.autocast("cpu", torch.bfloat16):
            loop.ato.step(loop.held_back_loss)
            assert torch.is_autocast_enabled("cpu")
    check_result(loop)


def test_parameters_that_are_not_trained_stay_and_are_cut_all_the_same() -> None:
    loop = Loop(
        "residual", optimizer=lambda p: torch.optim.SGD(list(p)[6:], 0.05), steps=24, every=1
    )
    frozen = list(loop.gated.parameters())[:6]
    before = [p.detach().clone() for p in frozen]
    check_result(loop.run())
    assert all(torch.equal(p, b) for p, b in zip(frozen, before, strict=True))


@pytest.mark.parametrize(
    ("net", "target"),
    [
        (
            nn.Sequential(
                nn.Linear(36, 12), nn.Tanh(), nn.Linear(12, 1), nn.Tanh(), nn.Linear(1, 3)
            ),
            0.5,
        ),
        (nn.Sequential(nn.Linear(36, 4), nn.Sigmoid(), nn.Linear(4, 3)), 0.25),
    ],
    ids=["a group of one unit", "one group that noise may close whole"],
)
def test_odd_groups(net: nn.Module, target: float) -> None:
    gated = auto_gate(net, torch.zeros(1, 36))
    optimizer = torch.optim.Adam(gated.parameters(), 1e-2)
    ato = AutoTrainOnce(gated, optimizer, steps=60, macs=target, every=1, learning_rate=1e-2)

    def loss(data: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(gated(data[0].flatten(1)), data[1])

    for step in range(60):
        optimizer.zero_grad()
        loss(batch(step)).backward()
        optimizer.step()
        ato.step(lambda step=step: loss(held_back(step)))
        assert 0 < ato.expected <= 1
        assert all(bool(torch.isfinite(p).all()) for p in ato.network.parameters())
    assert ato.finish().met
    assert all(mask.any() for mask in gated.keep.values())


# -- reproducibility ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["depthwise", "two modes"])
def test_equal_runs_are_equal_bit_for_bit(kind: str) -> None:
    runs = [state_of(Loop(kind, steps=20, seed=seed).run()) for seed in (3, 3, 4)]
    assert differing(runs[0], runs[1]) == []
    assert "network gru.weight_ih_l0" in differing(runs[0], runs[2])
    assert any(key.startswith("mask") for key in differing(runs[0], runs[2]))
    assert any(key.startswith("gated") for key in differing(runs[0], runs[2]))


def test_torch_s_own_random_state_is_left_alone() -> None:
    """Noise and initial weights come from the controller's own generators."""
    loop = Loop("residual", steps=24)
    with nothing_random():
        ato = AutoTrainOnce(loop.gated, loop.optimizer, steps=24, macs=0.5, every=2, seed=9)
        loop.ato = ato
        loop.run()
        ato.finish()


def test_the_module_may_move_its_parameters_between_steps() -> None:
    """`gated.to(...)` puts new data into the same parameters."""
    loop = Loop("residual", steps=24, every=1).run(until=10)
    loop.gated.to(memory_format=torch.channels_last)
    check_result(loop.run())


# -- torch.compile -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_model_trains_without_a_graph_break_to_the_same_end() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain = Loop("residual", steps=14, every=1).run()
    compiled = Loop(
        "residual",
        steps=14,
        every=1,
        wrap=lambda m: torch.compile(m, backend="eager", fullgraph=True),
    ).run()
    counters = torch._dynamo.utils.counters
    graphs = counters["stats"]["unique_graphs"]
    assert 3 <= graphs <= 6, "open, soft and hard gates, each compiled once or with another shape"
    assert not counters["graph_break"]
    assert differing(state_of(plain), state_of(compiled)) == []
    check_result(compiled)
    torch._dynamo.reset()
