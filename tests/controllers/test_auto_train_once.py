"""Whole runs of Auto-Train-Once on small networks."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from controllers.loops import (
    ARGUMENTS,
    NETS,
    STEPS,
    Loop,
    batch,
    differing,
    held_back,
    state_of,
)
from controllers.outcome import check_result
from gate_checks import assert_state_is_sliced
from torch import Tensor, nn

from fxprune import auto_gate
from fxprune.controllers import AutoTrainOnce, EarlyFinishWarning, Schedule
from fxprune.controllers.relaxation import logistic_noise, relax, round_straight_through
from fxprune.controllers.resource import resource_term
from fxprune.gated import GatedModule
from fxprune.prune import BudgetWarning

BLOCK_MAKERS = {
    "stem": ("stem.weight", "stem_norm.weight", "stem_norm.bias",
             "outer.weight", "outer_norm.weight", "outer_norm.bias"),
    "inner": ("inner.weight", "inner_norm.weight", "inner_norm.bias"),
    "neck": ("neck.weight", "neck.bias"),
    "last": ("last.weight", "last.bias"),
}  # fmt: skip
"""What makes the units of the residual network, listed by hand."""


def norms(loop: Loop, keep: dict[str, Tensor]) -> Tensor:
    """Return the norm of what makes each closed unit of the residual network."""
    parameters = dict(loop.gated.named_parameters())
    found = []
    for group, names in BLOCK_MAKERS.items():
        made = [
            parameters[name].detach().flatten(1 if parameters[name].dim() > 1 else 0)
            for name in names
        ]
        rows = torch.cat([m if m.dim() > 1 else m[:, None] for m in made], 1)
        found.append(rows[~keep[group]].norm(dim=1))
    return torch.cat(found)


def weights(gated: GatedModule) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in gated.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# -- phases ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "schedule"),
    [(1, Schedule()), (3, Schedule()), (4, Schedule(0, 0.5, 0.7)), (2, Schedule(0.2, 0.5, 0.5))],
    ids=["1", "3", "4", "2"],
)
def test_the_controller_is_called_exactly_when_it_is_due(every: int, schedule: Schedule) -> None:
    loop = Loop("linear", every=every, schedule=schedule)
    assert loop.ato.phase == schedule.phase(0, 40)
    due = []
    for step in range(1, 41):
        if loop.ato.due:
            due.append(step)
        loop.step()
        assert loop.ato.steps_done == step
        assert loop.ato.phase == schedule.phase(step, 40)
    first, last = round(40 * schedule.search), round(40 * schedule.final)
    assert loop.asked == due == [s for s in range(1, 41) if first <= s < last and s % every == 0]
    assert not loop.ato.due


def test_nothing_happens_in_the_warm_up() -> None:
    loop = Loop(schedule=Schedule(0.3, 0.4, 0.6), every=1)
    for _ in range(11):
        loop.train_weights()
        before = state_of(loop)
        loop.ato.step(pytest.fail)
        assert loop.ato.expected == 1.0
        assert set(differing(before, state_of(loop))) == {"numbers"}
    assert loop.ato.phase == "warm-up"


@pytest.mark.parametrize("kind", NETS)
def test_a_controller_step_changes_no_weight_no_statistics_and_no_gradient(kind: str) -> None:
    """The held-back forward runs in train mode, so BatchNorm would take note of it."""
    loop = Loop(kind, every=1, schedule=Schedule(0.0, 0.9, 0.9), steps=6)
    for _ in range(4):
        loop.train_weights()
        next(loop.gated.parameters()).grad = None
        before = weights(loop.gated)
        gradients = {
            n: None if p.grad is None else p.grad.clone() for n, p in loop.gated.named_parameters()
        }
        network = [p.detach().clone() for p in loop.ato.network.parameters()]
        inside = {}

        def ask(inside: dict[str, Tensor] = inside) -> Tensor:
            loss = loop.held_back_loss()
            inside.update(weights(loop.gated))
            return loss

        loop.ato.step(ask)
        assert same(before, inside) == (kind == "linear"), "there were statistics to protect"
        assert same(before, weights(loop.gated))
        for name, parameter in loop.gated.named_parameters():
            if gradients[name] is None:
                assert parameter.grad is None, name
            else:
                assert torch.equal(parameter.grad, gradients[name]), name
        assert not all(
            torch.equal(p, q) for p, q in zip(loop.ato.network.parameters(), network, strict=True)
        )
        assert all(mask.all() for mask in loop.gated.keep.values())
        assert loop.gated._vector().soft is None
        assert loop.gated.training


def test_a_controller_step_sees_the_held_back_batch_and_nothing_else() -> None:
    loop = Loop("linear", every=2)
    seen: list[Tensor] = []
    loop.gated.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for _ in range(STEPS):
        loop.train_weights()
        seen.clear()
        due = loop.ato.due
        loop.ato.step(loop.held_back_loss)
        assert len(seen) == int(due)
        if due:
            assert torch.equal(seen[0], held_back(loop.ato.steps_done)[0])


@pytest.mark.parametrize(("resource", "pace"), [("macs", 0.0), ("params", 0.0), ("macs", 0.5)])
def test_a_controller_step_follows_the_gradient_of_the_paper(resource: str, pace: float) -> None:
    """Held-back task loss under noisy soft gates, plus 4 times the resource term of rounded ones."""
    schedule = Schedule(0, 0.9, 0.9, pace)
    arguments = {"seed": 5, "every": 1, "steps": 10, "schedule": schedule}
    loop = Loop("residual", **arguments, **{resource: 0.4})
    network, gated = loop.ato.network, loop.gated
    noise = logistic_noise(gated.plan.n_units, torch.Generator().manual_seed(5))
    gates = relax(network(), noise)
    x, y = held_back(1)
    with gated.soft_gates(gates):
        loss = F.cross_entropy(gated(x), y)
    dense = getattr(gated.expected_cost(torch.ones_like(gates)), resource).detach()
    kept = getattr(gated.expected_cost(round_straight_through(gates)), resource) / dense
    total = loss + 4 * resource_term(kept, schedule.target(1, 10, 0.4))
    expected = torch.autograd.grad(total, list(network.parameters()))
    before = [p.detach().clone() for p in network.parameters()]
    loop.ato.step(loop.held_back_loss)
    for (name, parameter), gradient, old in zip(
        network.named_parameters(), expected, before, strict=True
    ):
        torch.testing.assert_close(parameter.grad, gradient, msg=lambda m, n=name: f"{n}: {m}")
        # AdamW's first step is its rate times the sign of the gradient, on top of weight decay.
        rate = loop.ato._optimizer.param_groups[0]["lr"]
        large = gradient.abs() > 1e-4
        step = (parameter.detach() - old * (1 - rate * 1e-2))[large]
        torch.testing.assert_close(step, -rate * gradient[large].sign(), rtol=1e-2, atol=1e-6)


def test_the_controller_closes_what_the_budget_asks_for_and_spares_what_the_loss_needs() -> None:
    """Half of the units reach no output: closing them is free."""
    net = nn.Sequential(nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 3))
    with torch.no_grad():
        net[2].weight[:, ::2] = 0
        net[2].weight[:, 1::2].mul_(5)
    gated = auto_gate(net, torch.zeros(1, 36))
    arguments = {
        **ARGUMENTS,
        "steps": 300,
        "every": 1,
        "learning_rate": 3e-3,
        "resource_weight": 0.1,
    }
    arguments["schedule"] = Schedule(0, 0.5, 0.5)
    ato = AutoTrainOnce(gated, torch.optim.SGD(gated.parameters(), 0.0), macs=0.5, **arguments)
    x = batch(0, 64)[0].flatten(1)
    labels = gated(x).argmax(1)
    shares = []
    for _ in range(149):
        ato.step(lambda: F.cross_entropy(gated(x), labels))
        shares.append(ato.expected)
    assert shares[0] == 1.0
    assert shares[-1] < 0.7, "the controller itself closes units"
    ato.step(pytest.fail)
    useless, needed = ato.finish().keep.reshape(-1, 2).mean(0)
    assert needed >= useless + 0.25


# -- masks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("projection", ["proximal", "half-space"])
def test_masks_are_open_until_the_final_phase_and_fixed_and_hard_from_then_on(
    projection: str,
) -> None:
    loop = Loop("residual", projection=projection)
    masks, selection = None, None
    for step in range(1, STEPS + 1):
        loop.step()
        if loop.ato.phase != "final":
            assert step < 20
            assert loop.ato.selection is None
            assert all(mask.all() for mask in loop.gated.keep.values())
            continue
        if masks is None:
            assert step == 20, "at the first moment"
            masks, selection = loop.gated.keep, loop.ato.selection
            assert not all(mask.all() for mask in masks.values())
        assert loop.ato.selection is selection
        assert same(loop.gated.keep, masks)
        assert loop.gated._vector().soft is None
    assert loop.ato.finish() is selection
    assert same(loop.gated.keep, masks)
    assert loop.ato.expected == selection.reached


def test_the_units_that_stay_have_the_highest_logits_of_their_group() -> None:
    loop = Loop("linear").run()
    logits = loop.ato.logits()
    for name, at in loop.gated.plan.group_slices().items():
        keep, mine = loop.gated.keep[name], logits[at]
        assert 0 < int(keep.sum()) < len(keep)
        assert mine[keep].min() >= mine[~keep].max()


@pytest.mark.parametrize(
    ("optimizer", "projection"),
    [("sgd", "proximal"), ("adam", "proximal"), ("adamw", "half-space"), ("rmsprop", "proximal")],
)
def test_closed_units_go_to_zero(optimizer: str, projection: str) -> None:
    loop = Loop(
        "residual",
        optimizer=optimizer,
        projection=projection,
        steps=60,
        schedule=Schedule(0.05, 0.1, 0.25),
    )
    loop.run_to("final")
    keep = loop.gated.keep
    opened = {name: ~mask for name, mask in keep.items()}
    fresh = Loop("residual")
    before = norms(fresh, keep)
    loop.run()
    # Momentum goes on for a while where gradients have ended; nothing brings closed units back.
    assert float(norms(loop, keep).max()) < 0.01 * float(before.min())
    assert float(norms(loop, opened).median()) > 0.5 * float(norms(fresh, opened).median())


def test_the_weight_steps_of_the_final_phase_train_the_compact_model() -> None:
    """The same batches on the compact model of that moment give the same weights and statistics."""
    for kind in ("residual", "linear"):
        loop = Loop(kind, optimizer=lambda p: torch.optim.SGD(p, 0.05), dtype=torch.float64)
        loop.run_to("final")
        compact = loop.gated.compact()
        optimizer = torch.optim.SGD(compact.parameters(), 0.05)
        while loop.ato.steps_done < STEPS:
            x, y = batch(len(loop.losses))
            optimizer.zero_grad()
            loss = F.cross_entropy(compact(loop.input(x)), y)
            loss.backward()
            optimizer.step()
            loop.step()
            assert loop.losses[-1] == pytest.approx(loss.item(), rel=1e-8)
        assert_state_is_sliced(loop.gated, compact)


# -- the end -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("budget", [{"macs": 0.35}, {"params": 0.6}], ids=["macs", "params"])
def test_a_run_meets_its_budget_and_its_compact_model_is_equal(
    kind: str, budget: dict[str, float]
) -> None:
    loop = Loop(kind, steps=20, every=1, **budget).run()
    check_result(loop)
    assert loop.losses[-1] < loop.losses[0]


def test_gates_matter_where_the_activation_is_not_0_at_0() -> None:
    """Zero weights alone would not do: opening the gates again changes what the network computes."""
    loop = Loop("linear").run()
    loop.gated.eval()
    x = batch(0)[0]
    gated = loop.gated(x)
    loop.gated.set_keep({name: torch.ones_like(mask) for name, mask in loop.gated.keep.items()})
    assert float((loop.gated(x) - gated).detach().abs().max()) > 0.01


def test_widths_are_multiples_of_round_to() -> None:
    for given in (True, False):
        loop = Loop("linear", steps=20, **({"round_to": 2} if given else {}))
        if not given:  # what auto_gate was told counts where the controller is told nothing
            gated = auto_gate(NETS["linear"](), batch(0)[0], round_to=2)
            optimizer = torch.optim.SGD(gated.parameters(), 0.1)
            loop.gated = loop.model = gated
            loop.ato = AutoTrainOnce(gated, optimizer, steps=20, macs=0.5)
        check_result(loop.run())
        assert all(int(mask.sum()) % 2 == 0 for mask in loop.gated.keep.values())


def test_a_budget_too_coarse_to_meet_is_told() -> None:
    loop = Loop("linear", steps=20, round_to=16)
    with pytest.warns(BudgetWarning, match="nearest reachable"):
        loop.run()
    assert not loop.ato.finish().met
    assert all(int(mask.sum()) % 16 in (0, len(mask) % 16) for mask in loop.gated.keep.values())


def test_a_budget_of_everything_closes_nothing() -> None:
    loop = Loop("residual", steps=20, macs=1.0).run()
    assert loop.ato.finish().reached == 1.0
    assert all(mask.all() for mask in loop.gated.keep.values())


def test_finishing_early_warns_and_still_meets_the_budget() -> None:
    for steps in (0, 1, 19):
        loop = Loop("linear").run(until=steps)
        with pytest.warns(EarlyFinishWarning, match=f"finished after {steps} of 40 steps"):
            chosen = loop.ato.finish()
        check_result(loop)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert loop.ato.finish() is chosen, "once told is enough"


def test_steps_beyond_the_end_keep_the_masks() -> None:
    loop = Loop("linear", steps=20).run()
    masks = loop.gated.keep
    for _ in range(5):
        loop.train_weights()
        loop.ato.step(pytest.fail)
    assert same(loop.gated.keep, masks)
    check_result(loop)


def test_a_run_of_one_step() -> None:
    check_result(Loop("linear", steps=1).run())
