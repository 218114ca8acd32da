"""Partition of any single-shot module: every place where it can be cut, and the two sides of a cut."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor, fx, nn

from serverlight.errors import ConfigError, CutNotFound, NotExportable
from serverlight.partition.boundary import Boundary, CutPoint
from serverlight.partition.cuts import Line, find_lines
from serverlight.partition.export import Trace, trace
from serverlight.partition.inputs import InputBinder, as_call, widen
from serverlight.partition.macs import count_macs
from serverlight.partition.outputs import Outputs
from serverlight.partition.sides import Head, Tail, extract

__all__ = ["Partition", "partition"]


def partition(module: nn.Module, example_inputs: object, *, side_inputs: Collection[str] | None = None) -> Partition:
    """Finds every place where a module can be cut.

    The module is traced once with ``torch.export``, in evaluation mode and with a free batch size; it is left as it
    was, and the sides share its parameters. All sizes other than the batch are those of the example.

    Args:
        module: Any module whose forward needs nothing but its arguments.
        example_inputs: A tensor, a tuple of arguments or a dict of keyword arguments. The leading dimension of the
            first tensor is the batch, and so is that of every other tensor where the sizes agree.
        side_inputs: Names of inputs that go to both sides as they are, such as an attention mask. By default all
            tensors but the first that are not floating point.

    Raises:
        ConfigError: ``side_inputs`` names something that is not an input, or the first input.
        InputMismatch: the module does not run with the example.
        NotExportable: the module cannot be traced; the message says which line of it and what to do.

    >>> import torch
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(1800, 10))
    >>> parts = partition(model, torch.zeros(1, 3, 32, 32))
    >>> [cut.name for cut in parts.cuts]
    ['input', '0', '1', '2', 'output']
    >>> parts.cut("1").tensors
    (TensorSpec(name='1', shape=(None, 8, 15, 15), dtype='float32', batch_factor=1, side_input=False),)
    >>> head, tail = parts.split("1")
    >>> x = torch.rand(5, 3, 32, 32)
    >>> torch.equal(tail(*head(x)), model(x))
    True
    """
    if not isinstance(module, nn.Module):
        raise NotExportable(f"expected a torch.nn.Module, got {type(module).__name__}; put it into a module's forward")
    call = as_call(example_inputs)
    binder = InputBinder(module.forward, call)
    if binder.batch == 1:
        binder = InputBinder(module.forward, widen(call))
    sides = _side_inputs(binder, side_inputs)
    return Partition(type(module).__name__, trace(module, binder), binder, sides)


def _side_inputs(binder: InputBinder, wanted: Collection[str] | None) -> set[str]:
    _, *others = binder.tensors
    if wanted is None:
        return {name for name in others if not binder.tensors[name].is_floating_point()}
    for name in wanted:
        if name not in others:
            choice = ", ".join(others) or "none, the module has one input"
            raise ConfigError("side_inputs", f"{name!r} cannot go to both sides; choose from: {choice}")
    return set(wanted)


class Partition:
    """A module and every place where it can be cut; see :func:`partition`."""

    def __init__(self, module_name: str, traced: Trace, binder: InputBinder, side_inputs: Collection[str]) -> None:
        self._module_name = module_name
        self._source = traced.graph_module
        self._binder = binder
        self._outputs = Outputs(traced.outputs, traced.out_spec)
        self._results = [leaf for leaf in traced.outputs if isinstance(leaf, fx.Node)]
        specs = [binder.spec(name, side_input=name in side_inputs) for name in binder.tensors]
        self._inputs = dict(zip(traced.inputs, specs, strict=True))
        self._batch = traced.batch
        self._lines = find_lines(
            self._source,
            self._batch,
            self._inputs,
            dict(zip(self._results, self._outputs.names, strict=True)),
            count_macs(self._source, list(binder.tensors.values())),
        )
        self.cuts = tuple(line.cut for line in self._lines)
        """Every legal cut, from ``input`` (all on the server) to ``output`` (all on the device)."""
        self._by_name = {alias: line for line in self._lines for alias in line.cut.aliases}
        self._by_name.update({line.cut.name: line for line in self._lines})
        # Each built once: torch keeps the source of every graph module that it has compiled as long as the process lives.
        self._sides: dict[str, tuple[Head, Tail]] = {}

    def __repr__(self) -> str:
        return f"Partition({self._module_name}, {len(self._lines)} cuts)"

    @property
    def offered(self) -> tuple[CutPoint, ...]:
        """The cuts to show people first: at the exits of modules, where at most one feature crosses, and at both ends.

        Where several features cross, as inside a residual block, one pays for each of them.
        """
        ends = self.cuts[0], self.cuts[-1]
        return tuple(
            cut
            for cut in self.cuts
            if cut in ends or (cut.is_module_exit and sum(spec.is_feature for spec in cut.tensors) <= 1)
        )

    @property
    def inputs(self) -> Boundary:
        """What the module takes, in the order of its parameters."""
        return tuple(self._inputs.values())

    @property
    def output_names(self) -> tuple[str, ...]:
        """A name for every tensor that the module returns: ``logits``, ``0``, or ``output`` for the only one."""
        return self._outputs.names

    def cut(self, name: str) -> CutPoint:
        """The cut of this name, or at the exit of the module of this path; raises CutNotFound with close names."""
        return self._line(name).cut

    def split(self, cut: CutPoint | str) -> tuple[Head, Tail]:
        """The two sides of a cut; they share their parameters with the module and need none of the other's.

        Sides may have a small parameter in common where both work out the same constant, such as a position table. Whoever
        asks again gets the same two modules.
        """
        line = self._line(cut if isinstance(cut, str) else cut.name)
        if line.cut.name not in self._sides:
            self._sides[line.cut.name] = self._build(line)
        return self._sides[line.cut.name]

    def segment(self, first: CutPoint | str, last: CutPoint | str) -> fx.GraphModule:
        """What lies between two cuts: from the tensors that cross the one to a tuple of those that cross the other.

        Parameters are shared with the module. Raises :class:`ConfigError` where the second does not lie behind the first.
        """
        start, end = (self._line(cut if isinstance(cut, str) else cut.name) for cut in (first, last))
        if start.cut.index > end.cut.index:
            raise ConfigError("last", f"{end.cut.name!r} lies before {start.cut.name!r}; give the earlier cut first")
        entries = list(zip(start.nodes, start.cut.tensors, strict=True))
        return extract(self._source, entries, end.nodes, self._batch)

    def unflatten_outputs(self, leaves: Sequence[Tensor]) -> Any:
        """Puts the list that ``tail.flat`` returns into the module's own output structure."""
        return self._outputs.unflatten(leaves)

    def _build(self, line: Line) -> tuple[Head, Tail]:
        crossing = list(zip(line.nodes, line.cut.tensors, strict=True))
        head = extract(self._source, list(self._inputs.items()), line.nodes, self._batch)
        tail = extract(self._source, crossing, self._results, self._batch)
        return Head(line.cut, head, self._binder, self.inputs), Tail(line.cut, tail, self._outputs)

    def _line(self, name: str) -> Line:
        if name not in self._by_name:
            raise CutNotFound(name, tuple(difflib.get_close_matches(name, self._by_name, n=3)))
        return self._by_name[name]
