"""A BERT-like encoder of Hugging Face transformers, built from a config: gated, cut, equal."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from gate_checks import assert_close, random_keep, run

from fxprune import auto_gate
from fxprune.inputs import flatten_outputs

transformers = pytest.importorskip("transformers")


def test_bert_encoder() -> None:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
    )
    model = transformers.BertModel(config).double().eval()
    ids = torch.randint(0, 50, (2, 7))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    gated = auto_gate(model, inputs)

    def outputs(module: torch.nn.Module) -> list[torch.Tensor]:
        return run(lambda: list(module(**inputs).values()))

    assert_close(outputs(gated), outputs(model), "open gates")
    names = {m.fqn for group in gated.groups for m in group.members}
    assert sum("intermediate.dense.weight" in name for name in names) == 2
    for seed, share in enumerate((0.3, 0.7)):
        gated.set_keep(random_keep(gated, share, seed))
        assert_close(outputs(copy.deepcopy(gated).compact()), outputs(gated), "compact")


@dataclass
class Features(transformers.utils.ModelOutput):  # type: ignore[name-defined,misc]
    last: torch.Tensor | None = None
    hidden: tuple[torch.Tensor, ...] | None = None


class Body(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (torch.nn.Linear(i, o) for i, o in ((5, 8), (8, 6), (6, 3)))

    def forward(self, x: torch.Tensor, return_dict: bool = True) -> Any:
        one = torch.relu(self.a(x))
        two = torch.relu(self.b(one))
        last = self.c(two)
        return Features(last=last, hidden=(two,)) if return_dict else (last, (two,))


class Head(torch.nn.Module):
    """It reads what another model returns, by name and by number."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = Body(), torch.nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.body(x)
        result: torch.Tensor = self.head(found.hidden[0]) + found[0]
        return result


@pytest.mark.parametrize(("make", "groups"), [(Body, 1), (Head, 2)])
def test_model_outputs(make: type[torch.nn.Module], groups: int) -> None:
    model, x = make().double().eval(), torch.randn(4, 5).double()
    gated = auto_gate(model, x)
    assert len(gated.groups) == groups
    assert type(gated(x)) is type(model(x))
    gated.set_keep(random_keep(gated, 0.5))

    def outputs(module: torch.nn.Module) -> list[torch.Tensor]:
        return [tensor for _, tensor in flatten_outputs(module(x))]

    assert_close(outputs(gated.compact()), outputs(gated))
