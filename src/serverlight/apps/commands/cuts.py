"""``serverlight cuts``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from serverlight.apps.options import JsonOption, ModelArgument
from serverlight.apps.terminal import STDOUT, check_writable, format_bytes, print_lines, print_table, write_json

if TYPE_CHECKING:
    from serverlight.partition import CutPoint, TensorSpec

__all__ = ["cuts"]

FP16_BYTES = 2


def cuts(
    model: ModelArgument = "demo-vision",
    show_all: Annotated[
        bool, typer.Option("--all", help="Also cuts inside a module, or where several tensors cross.")
    ] = False,
    json: JsonOption = None,
) -> None:
    """List the places where a model can be cut, what crosses there, and what each side then has to do.

    Example: `serverlight cuts demo-vision`
    """
    from serverlight.models import load_model
    from serverlight.partition import partition

    check_writable("json", json)
    loaded = load_model(model)
    parts = partition(loaded.module, loaded.example_inputs)
    found = parts.cuts
    shown = found if show_all else parts.offered
    if json:
        rows = [_row(cut) for cut in shown]
        write_json(json, {"model": loaded.name, "revision": loaded.revision, "num_cuts": len(found), "cuts": rows})
    if json == STDOUT:
        return
    columns = ["cut", "crosses", "elements", "fp16 bytes", "device: parameters", "device: MACs", "server: MACs"]
    print_table(columns, [_cells(cut) for cut in shown], left=2)
    hidden = len(found) - len(shown)
    print_lines(
        f"{loaded.name} (revision {loaded.revision}): {found[0].tail_parameters:,} parameters, "
        f"{found[0].tail_macs:,} multiply-accumulates (MACs) a sample. Elements and bytes are those of one sample.",
        *([f"{hidden} more cuts lie inside modules or send several tensors; --all shows them."] if hidden else []),
    )


def _row(cut: CutPoint) -> dict[str, Any]:
    return {
        "name": cut.name,
        "index": cut.index,
        "is_module_exit": cut.is_module_exit,
        "tensors": [
            {"name": spec.name, "shape": list(spec.shape), "dtype": spec.dtype, "side_input": spec.side_input}
            for spec in cut.tensors
        ],
        "elements_per_sample": cut.elements_per_sample,
        "fp16_bytes_per_sample": FP16_BYTES * cut.elements_per_sample,
        "head_parameters": cut.head_parameters,
        "tail_parameters": cut.tail_parameters,
        "head_macs": cut.head_macs,
        "tail_macs": cut.tail_macs,
    }


def _cells(cut: CutPoint) -> list[str]:
    return [
        cut.name,
        " + ".join(map(_shape, cut.tensors)),
        f"{cut.elements_per_sample:,}",
        format_bytes(FP16_BYTES * cut.elements_per_sample),
        _share(cut.head_parameters, cut.tail_parameters),
        _share(cut.head_macs, cut.tail_macs),
        _share(cut.tail_macs, cut.head_macs),
    ]


def _shape(spec: TensorSpec) -> str:
    sizes = "x".join(str(size) for size in spec.shape if size is not None)
    factor = f"{spec.batch_factor}x" if spec.batch_factor > 1 else ""
    return f"{factor}{sizes or 'scalar'}{' (side input)' if spec.side_input else ''}"


def _share(part: int, rest: int) -> str:
    return f"{100 * part / (part + rest):.1f} %" if part + rest else "-"
