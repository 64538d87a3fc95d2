"""Torch-pruning's GroupNormPruner with its own recipe: sparse training, pruning, fine-tuning."""

from __future__ import annotations

import copy
from importlib.metadata import version
from typing import Any

from torch import nn

from accuracy_.tasks import Setup, networks_module
from accuracy_.training import fit_stage, make_optimizer
from fxprune.errors import ConfigError

__all__ = ["torch_pruning"]

_STEPS = 400


def torch_pruning(
    setup: Setup,
    *,
    reg: float = 1e-4,
    sparse_share: float = 0.5,
    sparse_decay: float = 5e-4,
    everywhere: bool = False,
) -> tuple[nn.Module, dict[str, Any]]:
    """Train with the group regularizer, prune step by step to the target, fine-tune.

    What the project uses in its own experiments on CIFAR (``reproduce/main.py``, method
    ``group_sl``) is kept: group magnitude importance of L2 norms normalised by their maximum, the
    classifier's outputs ignored, 400 pruning steps towards nothing, left at the target. There it
    stops below the target; here the nearer of the two steps around it is taken. Learning rates and
    epochs are those of this comparison: half of the epochs for sparse training, half for
    fine-tuning.

    The defaults did best of four settings on resnet20 at 10 % of the MACs, seed 0: the same share
    of every layer, regularization 1e-4 beside the usual weight decay, 76.0 %; with 5e-4 in place
    of weight decay 68.1 %; the same with one ranking of all layers, the project's own settings,
    5.0 %, as layers are left with one channel; with at most 80 % of a layer pruned 59.2 %.

    Parameters
    ----------
    setup : Setup
    reg : float
        Strength of the regularizer.
    sparse_share : float
        Share of the epochs for sparse training.
    sparse_decay : float
        Weight decay beside the regularizer.
    everywhere : bool
        Rank the channels of all layers together; without it every layer loses the same share.

    Raises
    ------
    ConfigError
        When torch-pruning is not installed.

    References
    ----------
    .. [1] Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023.
    """
    try:
        import torch_pruning as tp
    except ImportError as error:
        raise ConfigError(
            "This method needs torch-pruning, which is not installed.",
            hint="pip install 'fxprune[bench]'",
        ) from error
    model = setup.build(1.0)
    classifiers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    pruner = tp.pruner.GroupNormPruner(
        model.eval(),
        setup.example,
        importance=tp.importance.GroupMagnitudeImportance(p=2, normalizer="max"),
        reg=reg,
        global_pruning=everywhere,
        pruning_ratio=1.0,
        iterative_steps=_STEPS,
        ignored_layers=classifiers[-1:],
    )
    pruner.update_regularizer()
    first = round(sparse_share * setup.task.epochs)
    fit_stage(
        model,
        setup,
        first,
        "torch-pruning, sparse",
        optimizer=make_optimizer(model, setup.task.rate, sparse_decay),
        before_step=lambda: pruner.regularize(model),
    )
    model = _prune(pruner, model, setup)
    fit_stage(model, setup, setup.task.epochs - first, "torch-pruning, fine-tuning", stage=1)
    return model, {
        "reg": reg,
        "sparse_share": sparse_share,
        "sparse_decay": sparse_decay,
        "everywhere": everywhere,
        "torch_pruning": version("torch-pruning"),
    }


def _prune(pruner: Any, model: nn.Module, setup: Setup) -> nn.Module:
    """Prune in small steps until the target is passed; return the nearer side of it."""
    count_macs = networks_module().count_macs
    model.eval()
    target = setup.task.target * count_macs(model, setup.example)
    before = model
    while count_macs(model, setup.example) > target and pruner.current_step < _STEPS:
        before = copy.deepcopy(model)  # the pruner changes the model it was made for
        pruner.step()
    return min((model, before), key=lambda m: abs(count_macs(m, setup.example) - target))
