"""Which values cross the line after each operation of a traced module.

Operations run in the order of the trace. A node is *data* if a feature or input flows into it; everything else
(parameters, position tables, sizes, masks made from side inputs alone) is worked out anew on whichever side needs it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import fx

__all__ = ["Liveness", "Span", "find_liveness"]

Span = tuple[int, int]
"""First and last position at which a value is made or needed: the head of the cut after position ``i`` works it out
if ``first <= i``, the tail if ``last > i``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Liveness:
    """Positions of a graph, numbered by its data operations; -1 stands before the first of them."""

    operations: tuple[fx.Node, ...]
    """The data operation at each position."""

    spans: dict[fx.Node, Span]
    """For operations and constants: where they are worked out."""

    last_use: dict[fx.Node, int]
    """For data nodes, inputs among them: the last position that reads them."""

    def live_after_each(self) -> Iterator[tuple[int, tuple[fx.Node, ...]]]:
        """The data nodes, in the order of the trace, that cross the line after each position."""
        expires: dict[int, list[fx.Node]] = {}
        for node, position in self.last_use.items():
            expires.setdefault(position, []).append(node)
        made = set(self.operations)
        live = {node: None for node in self.last_use if node not in made and self.last_use[node] > -1}
        yield -1, tuple(live)
        for position, node in enumerate(self.operations):
            for dead in expires.get(position, ()):
                del live[dead]
            live[node] = None
            yield position, tuple(live)


def find_liveness(graph: fx.Graph, batch: fx.Node, side_inputs: Collection[fx.Node]) -> Liveness:
    """Walks the graph once forwards and once backwards.

    Args:
        graph: The trace, without dead nodes.
        batch: The node that holds the batch size; both sides can work it out.
        side_inputs: Placeholders that both sides are given.
    """
    data = _find_data(graph, batch, side_inputs)
    operations = [node for node in graph.nodes if node in data and node.op not in ("placeholder", "output")]
    position = {node: i for i, node in enumerate(operations)}
    position[graph.output_node()] = len(operations)
    spans: dict[fx.Node, Span] = {}
    last_use: dict[fx.Node, int] = {}
    for node in reversed(graph.nodes):
        users = [spans[user] for user in node.users if user is not batch]
        needed = (min(first for first, _ in users), max(last for _, last in users)) if users else (-1, -1)
        last_use[node] = needed[1]
        spans[node] = (position[node], position[node]) if node in position else needed
    return Liveness(
        operations=tuple(operations),
        spans=spans,
        last_use={node: last_use[node] for node in graph.nodes if node in data and node.op != "output"},
    )


def _find_data(graph: fx.Graph, batch: fx.Node, side_inputs: Collection[fx.Node]) -> set[fx.Node]:
    data: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder":
            is_data = node not in side_inputs
        else:
            is_data = node.op == "output" or _is_random(node) or any(n in data for n in node.all_input_nodes)
        if is_data and node is not batch:
            data.add(node)
    return data


def _is_random(node: fx.Node) -> bool:
    """Noise is drawn once, on the device: drawn on both sides it would differ."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    names = [argument.name for argument in target._schema.arguments]
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    return not ("dropout_p" in names and given.get("dropout_p", 0.0) in (0, 0.0))
