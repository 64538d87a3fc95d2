"""Drawing gates, moving thetas, and what leaves for good."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fxprune.controllers.bernoulli import Block, Thetas

EXPLORE = 0.1


def thetas(n: int = 6, blocks: list[Block] | None = None, fixed: list[int] | None = None) -> Thetas:
    mask = torch.zeros(n, dtype=torch.bool)
    mask[fixed or []] = True
    return Thetas(blocks or [Block(slice(0, n), 1, 1)], mask)


def step(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


WORTH = torch.arange(6).double()


def test_samples_follow_theta_and_explore() -> None:
    found = thetas()
    found.move(step(0, -0.5, -0.9, -0.2, 0, 0), WORTH)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack(
        [found.draw(torch.rand(6, generator=generator), EXPLORE) for _ in range(4000)]
    )
    exploring = (drawn > 0) & (drawn < 1)
    for kind, expected in (
        (drawn == 0, 1 - found.value),
        (exploring, EXPLORE * found.value),
        (drawn == 1, (1 - EXPLORE) * found.value),
    ):
        assert (kind.double().mean(0) - expected).abs().max() < 0.03
    tenths = torch.histc(drawn[exploring], 10, 0, 1) / exploring.sum()
    assert (tenths - 0.1).abs().max() < 0.03, "anywhere between closed and open, equally likely"


def test_fixed_gates_are_never_closed_and_removed_ones_never_open() -> None:
    found = thetas(fixed=[0])
    found.move(step(-1, -1, 0, 0, 0, 0), WORTH)
    assert found.value.tolist() == [1, 0, 1, 1, 1, 1]
    assert found.free.tolist() == [False, False, True, True, True, True]
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack(
        [found.draw(torch.rand(len(found.value), generator=generator)) for _ in range(300)]
    )
    assert (drawn[:, 0] == 1).all()
    assert not drawn[:, 1].any()
    found.move(torch.ones(6).double(), WORTH)
    assert found.value[1] == 0, "a removed structure came back"


def test_a_sample_never_closes_a_whole_group_unless_it_is_a_branch() -> None:
    blocks = [Block(slice(0, 2), 1, 1), Block(slice(2, 4), 1, 1), Block(slice(4, 5), 1, 0)]
    found = thetas(5, blocks)
    found.move(step(-0.9, -0.95, -0.99, -0.9, -0.9), WORTH[:5])
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack(
        [found.draw(torch.rand(len(found.value), generator=generator)) for _ in range(500)]
    )
    assert drawn[:, :2].any(1).all()
    assert drawn[:, 2:4].any(1).all()
    assert not drawn[:, 4].all()


def test_the_last_unit_stays_and_the_worthiest_one_at_that() -> None:
    found = thetas()
    found.move(step(-1, -1, -1, -1, -1, -1), step(0, 0, 9, 0, 0, 0))
    assert found.value.tolist() == [0, 0, 1, 0, 0, 0]
    assert found.removed.tolist() == [True, True, False, True, True, True]
    assert not found.free.any()
    assert found.settled == 1


def test_a_branch_may_go_altogether() -> None:
    found = thetas(1, [Block(slice(0, 1), 1, 0)])
    found.move(step(-1), step(1))
    assert found.removed.all()


def test_units_leave_in_whole_blocks_the_least_worth_first() -> None:
    found = thetas(6, [Block(slice(0, 6), 2, 2)])
    found.move(step(-1, -1, -1, 0, 0, 0), step(3, 1, 2, 0, 0, 0))
    assert found.removed.nonzero().flatten().tolist() == [1, 2]
    assert found.value.tolist() == [0, 0, 0, 1, 1, 1]
    found.move(step(0.5, 0, 0, 0, 0, 0), WORTH)
    assert found.value[0] == 0.5, "what waits for its block can come back"
    found.move(step(-1, 0, 0, 0, 0, -1), WORTH)
    assert found.removed.nonzero().flatten().tolist() == [0, 1, 2, 5]
    assert found.value.tolist() == [0, 0, 0, 1, 1, 0]
    assert not found.free.any(), "two are left, the last block"


def test_a_group_too_narrow_for_a_block_does_not_move() -> None:
    found = thetas(3, [Block(slice(0, 3), 4, 4)])
    assert not found.free.any()


def test_settled_counts_what_may_move_or_did() -> None:
    found = thetas(fixed=[0, 1])
    assert found.settled == 1
    found.move(step(0, 0, -0.5, -0.97, -0.03, -1), WORTH)
    assert found.settled == pytest.approx(0.75)
    assert thetas(2, fixed=[0, 1]).settled == 1


def test_taking_units_and_a_state_that_comes_back() -> None:
    found = thetas(fixed=[0])
    found.move(step(0, -1, -0.3, 0, 0, 0), WORTH)
    other = thetas()
    other.load_state_dict(found.state_dict())
    for one in (found, other):
        one.take(torch.tensor([0, 2, 3]), [Block(slice(0, 3), 1, 1)])
        assert one.value.tolist() == [1, 0.7, 1]
        assert one.free.tolist() == [False, True, True]
        assert one.settled == pytest.approx(0.8), "what was cut out had settled"
    with pytest.raises(RuntimeError):
        thetas(7).load_state_dict(found.state_dict())
