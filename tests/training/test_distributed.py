"""Two processes train what one trains."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from training.runs import (
    RANKS_NETS,
    RANKS_SETTINGS,
    data,
    net,
    processes,
    rank_child,
    trained,
)

from fxprune import auto_gate
from fxprune.errors import ConfigError
from fxprune.training.distributed import Ranks, joined

WORLD = 2
X = torch.zeros(1, 3, 8, 8)


def free_ports() -> tuple[int, int]:
    with socket.socket() as first, socket.socket() as second:
        for one in (first, second):
            one.bind(("127.0.0.1", 0))
        return int(first.getsockname()[1]), int(second.getsockname()[1])


@pytest.fixture(scope="module", params=RANKS_SETTINGS)
def method(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(tmp_path_factory, method) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def found(folder, method) -> list[dict[str, Any]]:
    """What each rank ended with."""
    ports = free_ports()
    children = [
        processes.Process(target=rank_child, args=(rank, WORLD, ports, folder, method))
        for rank in range(WORLD)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(300)
    for child in children:
        child.kill()  # one that hangs must not outlive the test
    assert [child.exitcode for child in children] == [0] * WORLD
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(WORLD)]


def test_both_ranks_end_with_equal_masks_and_weights(found, method) -> None:
    first, second = (one["ends"] for one in found)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    masks = [mask for name, mask in first.items() if name.startswith("mask")]
    whole = sum(group.size for group in auto_gate(RANKS_NETS[method](), X, branches=True).groups)
    assert 0 < sum(map(len, masks)) < whole
    assert all(bool(mask.all()) for mask in masks), (
        "both cut out what is closed, in their last half"
    )
    assert found[0]["figures"]["compact"] == found[1]["figures"]["compact"]


def test_they_end_as_one_process_with_the_same_global_batch(found, method, tmp_path) -> None:
    alone = trained(RANKS_NETS[method](), data(), RANKS_SETTINGS[method], tmp_path)
    for name, expected in alone.items():
        torch.testing.assert_close(found[0]["ends"][name], expected, rtol=1e-4, atol=1e-5, msg=name)


def test_an_error_of_the_first_rank_reaches_all(found) -> None:
    assert [one["refused"] for one in found] == ["The disk is full."] * WORLD


def test_only_the_first_rank_writes(found, folder) -> None:
    names = {path.name for path in folder.iterdir()}
    assert {"checkpoint.pt", "log.csv", "compact.onnx", "compact.pt"} < names
    rows = (folder / "log.csv").read_text().splitlines()
    assert len(rows) == 1 + RANKS_SETTINGS["ato"].epochs


def test_parts_of_a_batch_are_contiguous_and_complete() -> None:
    rows, cpu = torch.arange(12), torch.device("cpu")
    parts = [Ranks(rank, 3, cpu).share(rows) for rank in range(3)]
    assert torch.equal(torch.cat(parts), rows)
    assert {len(part) for part in parts} == {4}


def test_one_process_needs_no_group() -> None:
    with joined("cpu") as ranks:
        model = net()
        assert (ranks.rank, ranks.world, ranks.is_main) == (0, 1, True)
        assert ranks.wrap(model) is model
        assert ranks.gathered(3) == [3]
        assert ranks.agreed(lambda: "here") == "here"
    assert not torch.distributed.is_initialized()


def test_devices_that_are_not_there() -> None:
    with pytest.raises(ConfigError, match="no device 'abacus' to train on"), joined("abacus"):
        pass
