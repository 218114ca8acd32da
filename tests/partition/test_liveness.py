"""Liveness against its definition, on random graphs."""

from __future__ import annotations

import random

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import fx

from serverlight.partition.liveness import find_liveness


def random_graph(seed: int) -> tuple[fx.Graph, list[fx.Node], list[fx.Node]]:
    """A graph without dead nodes, its inputs, and those of them that go to both sides."""
    choose = random.Random(seed)
    graph = fx.Graph()
    inputs = [graph.placeholder(f"input_{i}") for i in range(choose.randint(1, 3))]
    nodes = [graph.get_attr(f"weight_{i}") for i in range(choose.randint(0, 3))] + inputs
    for _ in range(choose.randint(1, 15)):
        arguments = choose.choices(nodes, k=choose.randint(0, 3))
        nodes.append(graph.call_function(torch.add, tuple(arguments)))
    unused = tuple(node for node in nodes if not node.users and node.op != "placeholder")
    graph.output(unused or (nodes[-1],))
    for node in reversed(graph.nodes):
        if not node.users and node.op not in ("placeholder", "output"):
            graph.erase_node(node)
    return graph, inputs, [node for node in inputs[1:] if choose.random() < 0.5]


def ancestors(node: fx.Node) -> set[fx.Node]:
    return {node}.union(*(ancestors(parent) for parent in node.all_input_nodes))


@given(st.integers(0, 10**9))
def test_live_values_are_those_made_before_and_read_after(seed: int) -> None:
    """After each operation exactly the data made so far that a later operation reads crosses."""
    graph, inputs, sides = random_graph(seed)
    batch = fx.Node(graph, "batch", "call_function", torch.add, (), {})
    liveness = find_liveness(graph, batch, sides)
    main = set(inputs) - set(sides)
    data = [node for node in graph.nodes if node.op != "output" and ancestors(node) & main]
    assert list(liveness.operations) == [node for node in data if node.op == "call_function"]
    order = {node: i for i, node in enumerate(graph.nodes)}
    crossing = dict(liveness.live_after_each())
    for position, live in crossing.items():
        line = order[liveness.operations[position]] if position >= 0 else order[inputs[-1]]
        expected = [node for node in data if order[node] <= line and any(order[u] > line for u in node.users)]
        assert list(live) == expected
    assert list(crossing) == list(range(-1, len(liveness.operations)))


@given(st.integers(0, 10**9))
def test_constants_are_worked_out_where_they_are_needed(seed: int) -> None:
    """A constant is the head's if something up to the line needs it, the tail's if something after it does."""
    graph, _, sides = random_graph(seed)
    batch = fx.Node(graph, "batch", "call_function", torch.add, (), {})
    liveness = find_liveness(graph, batch, sides)
    operations = [*liveness.operations, graph.output_node()]
    for node, (first, last) in liveness.spans.items():
        if node in liveness.last_use or node.op == "output":
            continue
        needing = [
            i for i, operation in enumerate(operations) if node in constant_ancestors(operation, liveness.last_use)
        ]
        assert (first, last) == ((needing[0], needing[-1]) if needing else (-1, -1))


def constant_ancestors(node: fx.Node, data: dict[fx.Node, int]) -> set[fx.Node]:
    constants = {parent for parent in node.all_input_nodes if parent not in data}
    return constants.union(*(constant_ancestors(parent, data) for parent in constants))
