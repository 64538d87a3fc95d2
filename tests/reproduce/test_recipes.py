"""The table of recipes."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from reproduce_samples import PARAMETERS, ROOT

import fxprune
from fxprune.budget import check_budget
from fxprune.controllers.schedule import Schedule
from fxprune.training import TrainSettings

SIZES = {
    "cifar10": (10, 32, 50_000),
    "cifar100": (100, 32, 50_000),
    "imagenet": (1000, 224, 1_281_167),
}


# -- the table
@pytest.mark.parametrize(
    "name",
    # For CIFAR-100 only the last layer and the budget are others.
    [pytest.param(n, marks=pytest.mark.slow if "100" in n else ()) for n in PARAMETERS],
)
def test_a_recipes_network_has_its_size_and_can_meet_the_budget(tools, name) -> None:
    recipe = tools.find_recipe(name)
    classes, size, _ = SIZES[recipe.data]
    model = recipe.build(classes)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    gated = fxprune.auto_gate(model, torch.zeros(1, 3, size, size))
    macs = recipe.settings().macs
    check = check_budget(gated.plan, gated.cost_of, macs=macs, params=None, round_to=1)
    assert check == ("macs", macs)


def test_there_are_no_other_recipes(tools) -> None:
    assert list(tools.RECIPES) == list(PARAMETERS)


def test_every_value_is_cited_and_a_setting(tools) -> None:
    fields = {field.name for field in dataclasses.fields(TrainSettings)}
    named = {
        "macs",
        "epochs",
        "batch_size",
        "optimizer",
        "lr",
        "weight_decay",
        "schedule",
        "warm_up",
    }
    named |= {"label_smoothing", "every", "controller_lr", "held_back"}
    used = set()
    for recipe in tools.RECIPES.values():
        assert named <= recipe.cited.keys() <= fields
        assert (
            recipe.cited["optimizer"].value != "sgd"
            or {"momentum", "nesterov"} <= recipe.cited.keys()
        )
        assert {name: getattr(recipe.settings(), name) for name in recipe.cited} == {
            name: one.value for name, one in recipe.cited.items()
        }
        used |= {one.source for one in recipe.cited.values()}
    assert used == tools.SOURCES.keys()


def test_a_recipe_runs_the_papers_schedule(tools) -> None:
    for recipe in tools.RECIPES.values():
        settings, (_, _, images) = recipe.settings(), SIZES[recipe.data]
        steps = settings.epochs * (int(0.95 * images) // settings.batch_size)
        assert Schedule.for_run(steps) == Schedule(0.1, 0.2, 0.5)


def test_resnet34s_share_is_that_of_the_authors_command(tools) -> None:
    """Their 0.54 counts the convolutions of the blocks only."""
    model = tools.find_recipe("imagenet-resnet34").build(1000)
    example = torch.zeros(1, 3, 224, 224)
    total = tools.networks_module.count_macs(model, example)
    fixed = 3 * 64 * 49 * 112**2 + 1000 * 512  # the first layer and the last
    fixed += sum(a * 2 * a * (3136 // 4 ** (i + 1)) for i, a in enumerate((64, 128, 256)))
    share = (fixed + 0.54 * (total - fixed)) / total
    assert tools.find_recipe("imagenet-resnet34").settings().macs == pytest.approx(share, abs=5e-4)


def test_others_take_the_place_of_a_recipes_settings(tools) -> None:
    settings = tools.find_recipe("cifar10-resnet56").settings(epochs=2, amp=True)
    assert (settings.epochs, settings.amp, settings.batch_size) == (2, True, 128)


def test_the_list_is_that_of_the_readme(tools, capsys) -> None:
    with pytest.raises(SystemExit) as left:
        tools.main(["--list"])
    assert left.value.code is None
    printed = capsys.readouterr().out
    readme = (ROOT / "README.md").read_text()
    table, _, legend = printed.partition("\n\na  ")
    assert table in readme
    assert legend.count("\n") == len(tools.SOURCES)
    for key in tools.SOURCES:
        assert f"| {key} | " in readme
