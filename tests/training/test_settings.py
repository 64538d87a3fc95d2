from __future__ import annotations

import pytest

from fxprune.errors import ConfigError
from fxprune.training import TrainSettings


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"params": 0.5}, "exactly one of 'macs' and 'params'"),
        ({"macs": None}, "exactly one of 'macs' and 'params'"),
        ({"epochs": 0}, "'epochs' argument must be an integer >= 1"),
        ({"epochs": 1.5}, "'epochs' argument must be an integer >= 1"),
        ({"batch_size": 0}, "'batch_size' argument"),
        ({"accumulate": 0}, "'accumulate' argument"),
        ({"seed": -1}, "'seed' argument must be an integer >= 0"),
        ({"workers": -1}, "'workers' argument"),
        ({"every": 0}, "'every' argument"),
        ({"checkpoint_every": 0}, "'checkpoint_every' argument"),
        ({"log_every": 0}, "'log_every' argument"),
        ({"round_to": 0}, "'round_to' parameter"),
        ({"optimizer": "sgdd"}, "'optimizer' argument must be one of sgd, adam, adamw"),
        ({"schedule": "flat"}, "'schedule' argument must be one of one-cycle, cosine"),
        ({"held_back": 0}, "'held_back' argument must be a number > 0 and <= 0.5"),
        ({"held_back": 0.6}, "'held_back' argument"),
        ({"weight_decay": -1}, "'weight_decay' argument must be a number >= 0"),
        ({"momentum": 1}, "'momentum' argument must be a number >= 0 and < 1"),
        ({"lr": 0}, "'lr' argument must be a number > 0"),
        ({"lr": float("nan")}, "'lr' argument"),
        ({"clip": True}, "'clip' argument"),
        ({"amp": 1}, "'amp' argument must be a bool"),
        ({"nesterov": None}, "'nesterov' argument must be a bool"),
        ({"warm_up": 1}, "'warm_up' argument must be a number >= 0 and < 1"),
        ({"label_smoothing": -0.1}, "'label_smoothing' argument must be a number >= 0 and < 1"),
        ({"controller_lr": 0}, "'controller_lr' argument must be a number > 0"),
    ],
    ids=str,
)
def test_wrong_values_are_refused(wrong, message) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainSettings(**{"macs": 0.5, "epochs": 1, **wrong})


def test_defaults() -> None:
    settings = TrainSettings(params=0.3, epochs=2)
    assert settings.target == ("params", 0.3)
    assert (settings.rate, TrainSettings(macs=1, epochs=1, optimizer="adam").rate) == (0.05, 1e-3)
    assert TrainSettings(macs=0.2, epochs=1, lr=3).rate == 3
