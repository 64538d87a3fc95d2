"""A BERT-like encoder of Hugging Face transformers, built from a config: gated, cut, equal."""

from __future__ import annotations

import copy

import pytest
import torch
from gate_checks import assert_close, random_keep, run

from fxprune import auto_gate

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
