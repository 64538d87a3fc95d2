"""The dependency graph: axes as nodes, the operations that tied them as edges."""

from __future__ import annotations

import re

import networkx as nx
import pytest
from random_nets import random_net
from small_nets import AuxHead, Concat, Depthwise, Residual, image

from fxprune.analysis.plan import Member
from fxprune.api import auto_gate


def edges(graph: nx.MultiGraph) -> set[tuple[str, str, str, int]]:
    """Return the edges as (axis, axis, operation without its line, count)."""
    found = set()
    for a, b, data in graph.edges(data=True):
        first, second = sorted((str(a), str(b)))
        found.add((first, second, data["operation"].partition(" ")[0], data["count"]))
    return found


def test_nodes_are_the_axes_of_parameters_and_buffers() -> None:
    gated = auto_gate(Residual(), image())
    graph = gated.dependency_graph
    assert set(graph.nodes) == {Member(name, dim) for name, dim in gated.plan.axes}
    assert graph.nodes[Member("stem.weight", 0)] == {"size": 8, "groups": ["stem"]}
    assert graph.nodes[Member("stem.weight", 1)] == {"size": 3, "groups": []}
    assert graph.nodes[Member("inner.weight", 0)] == {"size": 6, "groups": ["inner"]}


def test_an_axis_may_belong_to_several_groups() -> None:
    graph = auto_gate(Concat(), image()).dependency_graph
    assert graph.nodes[Member("join.weight", 1)] == {"size": 12, "groups": ["left", "right"]}


def test_edges_carry_the_operation_and_how_many_positions_it_tied() -> None:
    assert edges(auto_gate(Residual(), image()).dependency_graph) == {
        ("inner.weight[1]", "stem.weight[0]", "inner", 8),
        ("outer.weight[0]", "stem.weight[0]", "add", 8),
        ("head.weight[1]", "stem.weight[0]", "head", 8),
        ("inner.weight[0]", "outer.weight[1]", "outer", 6),
        ("norm.weight[0]", "outer.weight[0]", "norm", 8),
        ("norm.bias[0]", "outer.weight[0]", "norm", 8),
        ("norm.running_mean[0]", "outer.weight[0]", "norm", 8),
        ("norm.running_var[0]", "outer.weight[0]", "norm", 8),
    }


def test_operations_name_the_line_of_the_forward() -> None:
    graph = auto_gate(Residual(), image()).dependency_graph
    told = [data["operation"] for _, _, data in graph.edges(data=True)]
    assert all(re.search(r"\(.*small_nets\.py:\d+\)$", text) for text in told)


def test_edges_of_a_join_count_the_positions_of_each_branch() -> None:
    found = edges(auto_gate(Concat(), image()).dependency_graph)
    assert ("join.weight[1]", "left.weight[0]", "join", 5) in found
    assert ("join.weight[1]", "right.weight[0]", "join", 7) in found
    assert ("alone.weight[0]", "join.weight[0]", "add", 4) in found


def test_edges_of_a_depthwise_convolution() -> None:
    found = edges(auto_gate(Depthwise(), image()).dependency_graph)
    assert ("depth.weight[0]", "expand.weight[0]", "depth", 12) in found


def test_the_axes_of_buffers_name_their_groups() -> None:
    graph = auto_gate(Residual(), image()).dependency_graph
    assert graph.nodes[Member("norm.running_mean", 0)]["groups"] == ["stem"]


def test_an_operation_that_both_graphs_contain_makes_one_edge() -> None:
    graph = auto_gate(AuxHead(), image()).dependency_graph
    assert graph.number_of_edges(Member("stem.0.weight", 0), Member("stem.1.weight", 0)) == 1


@pytest.mark.parametrize("seed", range(530, 550))
def test_members_of_a_group_are_connected(seed: int) -> None:
    model, x = random_net(seed)
    gated = auto_gate(model, x)
    graph = gated.dependency_graph
    assert set(graph.nodes) == {Member(name, dim) for name, dim in gated.plan.axes}
    for group in gated.groups:
        component = nx.node_connected_component(graph, group.members[0])
        assert set(group.members) <= component
    for a, b, data in graph.edges(data=True):
        assert data["operation"]
        assert data["count"] >= 1
        assert a != b
