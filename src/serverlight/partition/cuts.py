"""Every legal cut of a traced module, with what crosses it and what each side costs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from serverlight.partition.boundary import CutPoint, TensorSpec
from serverlight.partition.inputs import dtype_name
from serverlight.partition.liveness import Liveness, Span, find_liveness
from serverlight.partition.names import INPUT, OUTPUT, PlaceName, name_places
from serverlight.partition.sizes import spec_of

__all__ = ["Line", "find_lines"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A cut and the traced values that cross it."""

    cut: CutPoint
    """The cut as users see it."""

    nodes: tuple[fx.Node, ...]
    """What crosses, in the order of ``cut.tensors``."""


def find_lines(
    source: fx.GraphModule,
    batch: fx.Node,
    inputs: Mapping[fx.Node, TensorSpec],
    results: Mapping[fx.Node, str],
    macs: Mapping[fx.Node, int],
) -> list[Line]:
    """Lists the legal cuts from the input to the output.

    A cut is legal where every value that crosses is a tensor whose sizes are constants but for one that may follow the
    batch, and where the tail can read the batch size off one of them if it needs it.

    Args:
        source: The trace, without dead nodes.
        batch: The node that holds the batch size.
        inputs: The placeholders and what they are given.
        results: The output's tensors and their names.
        macs: Multiply-accumulates for one sample at each node.
    """
    side_inputs = [node for node, spec in inputs.items() if spec.side_input]
    liveness = find_liveness(source.graph, batch, side_inputs)
    places = [_INPUT, *name_places(liveness.operations)]
    specs = {**inputs, **_describe(liveness.operations, places[1:], batch)}
    parameters = _Costs(_parameter_spans(source, liveness), liveness)
    work = _Costs(((span, macs[node]) for node, span in liveness.spans.items()), liveness)
    lines: list[Line] = []
    for position, place, nodes in _crossings(liveness, places, side_inputs, list(results)):
        if place.name == OUTPUT:
            tensors = tuple(specs.get(node) or _loose_spec(results[node], node) for node in nodes)
        else:
            tensors = tuple(spec for node in nodes if (spec := specs[node]))
            needs_batch = liveness.spans.get(batch, (-1, -1))[1] > position
            if len(tensors) < len(nodes) or (needs_batch and all(None not in spec.shape for spec in tensors)):
                continue
        cut = CutPoint(
            name=place.name,
            aliases=place.aliases,
            index=len(lines),
            tensors=tensors,
            head_parameters=parameters.head(position),
            tail_parameters=parameters.tail(position),
            head_macs=work.head(position),
            tail_macs=work.tail(position),
            is_module_exit=place.is_module_exit,
        )
        lines.append(Line(cut=cut, nodes=nodes))
    return lines


_INPUT = PlaceName(name=INPUT, is_module_exit=True)


def _crossings(
    liveness: Liveness, places: Sequence[PlaceName], side_inputs: Sequence[fx.Node], results: Sequence[fx.Node]
) -> Iterator[tuple[int, PlaceName, tuple[fx.Node, ...]]]:
    """Position, place and crossing values of every line from the input to the output, legal or not.

    Where the last operation completes the output, the line after it is the output's, under both names.
    """
    end = len(liveness.operations)
    aliases: tuple[str, ...] = ()
    for position, live in liveness.live_after_each():
        place = places[position + 1]
        if 0 <= position == end - 1 and set(live) == set(results):
            aliases = (place.name, *place.aliases)
        else:
            sides = tuple(node for node in side_inputs if liveness.spans[node][1] > position)
            yield position, place, live + sides
    yield end, PlaceName(name=OUTPUT, aliases=aliases, is_module_exit=True), tuple(results)


def _describe(
    operations: Iterable[fx.Node], places: Iterable[PlaceName], batch: fx.Node
) -> dict[fx.Node, TensorSpec | None]:
    symbol = batch.meta["val"]
    return {
        node: spec_of(place.name, node.meta.get("val"), symbol) for node, place in zip(operations, places, strict=True)
    }


def _loose_spec(name: str, node: fx.Node) -> TensorSpec:
    """For an output that no cut before the last could carry: every size that is not a constant may be anything."""
    value: torch.Tensor = node.meta["val"]
    shape = tuple(size if isinstance(size, int) else None for size in value.shape)
    return TensorSpec(name=name, shape=shape, dtype=dtype_name(value.dtype))


def _parameter_spans(source: fx.GraphModule, liveness: Liveness) -> Iterator[tuple[Span, int]]:
    """Where each parameter is needed, and its elements; torch.export reads a tied parameter under one name only."""
    parameters = dict(source.named_parameters())
    for node in source.graph.find_nodes(op="get_attr"):
        if node.target in parameters:
            yield liveness.spans[node], parameters[node.target].numel()


class _Costs:
    """What head and tail bear at each position; what both must work out counts on both."""

    def __init__(self, amounts: Iterable[tuple[Span, int]], liveness: Liveness) -> None:
        num_positions = len(liveness.operations) + 2  # those before the first operation and at the output included
        begun, ended = [0] * num_positions, [0] * num_positions
        for (first, last), amount in amounts:
            begun[first + 1] += amount
            ended[last + 1] += amount
        self._begun, self._ended = list(itertools.accumulate(begun)), list(itertools.accumulate(ended))

    def head(self, position: int) -> int:
        return self._begun[position + 1]

    def tail(self, position: int) -> int:
        return self._ended[-1] - self._ended[position + 1]
