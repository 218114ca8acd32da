"""The backend of Triton kernels, without a graphics processor: interpreted, and compiled for one that is not there."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton has no wheel for this platform"
)

COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from serverlight.codec.backends.gpu import triton_coder, triton_filter, triton_reader

LAUNCHED = {
    triton_reader: ["fill_slots", "read_flat", "read_tokens", "read_planes", "count_nonzero", "check_raw", "place_values"],
    triton_filter: [
        "count_digits", "take_digits", "find_least", "count_ties", "quantise", "count_large", "split_raw", "tally",
    ],
    triton_coder: [
        "flat_symbols", "token_symbols", "plane_symbols", "count_symbols", "write_words", "copy_words", "write_escapes",
    ],
}
I64 = {"jobs", "frames", "state", "counts", "begins", "sums", "means", "tallies", "starts", "lengths", "ends", "bins"}
I16 = {"halves", "words"}
SCALARS = {
    "size", "columns", "rows", "contexts", "asymmetry", "inverse", "largest", "num_kept", "raw_bits", "run", "every",
    "looked_at", "one_sided", "copies", "lines", "pairs_of_unit", "blocks",
}
FLOATS = {"asymmetry", "inverse"}
CONSTANTS = {
    "LANES": 8, "BLOCK": 1024, "FIELDS": 16, "KIND": 3, "DTYPE": 0, "HAS_RAW": True, "HALF": True, "ONE_SIDED": False,
    "SHIFT": 24, "SURVEY": True, "SYMMETRIC": True, "TURNS": 15, "COUNT_ONLY": False, "GROUPS": 2,
}
SPECIAL = {
    ("count_symbols", "bins"): "*i32", ("count_symbols", "entries"): "i32", ("copy_words", "into"): "*i16",
    ("place_values", "largest"): "fp32",
}

def type_of(kernel, name):
    if (kernel, name) in SPECIAL:
        return SPECIAL[kernel, name]
    if name in SCALARS:
        return "fp32" if name in FLOATS else "i32"
    if name in ("data", "slots"):
        return "*u8"
    if name in I16:
        return "*i16"
    if name in I64:
        return "*i64"
    return "*fp32" if name in ("x", "out") else "*i32"

VARIANTS = {"LANES": (1, 2, 4), "KIND": (0, 1, 2), "DTYPE": (1, 2), "HAS_RAW": (False,), "HALF": (False,),
            "ONE_SIDED": (True,), "SURVEY": (False,), "SYMMETRIC": (False,), "COUNT_ONLY": (True,),
            "GROUPS": (0, 1, 3, 4)}
POINTERS = {"x": ("*fp32", "*fp16", "*i16"), "out": ("*fp32", "*fp16", "*i16")}

def compile(kernel, name, constants):
    signature = {a: "constexpr" if a in constants else type_of(name, a) for a in kernel.arg_names}
    for a in POINTERS.keys() & signature.keys():
        signature[a] = POINTERS[a][constants.get("DTYPE", 0)]
    source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=constants)
    options = {"enable_fp_fusion": False, "num_warps": 1 if "LANES" in constants and "BLOCK" not in constants else 4}
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
    assert ".target sm_90" in ptx, name
    assert "fma.rn.f" not in ptx, f"{name}: a product and a sum are rounded as one"
    assert ".ftz" not in ptx, f"{name}: subnormal numbers are flushed"

for module, names in LAUNCHED.items():
    for name in names:
        kernel = getattr(module, name)
        constants = {a: CONSTANTS[a] for a in kernel.arg_names if a in CONSTANTS}
        compile(kernel, name, constants)
        for constant in constants.keys() & VARIANTS.keys():
            for value in VARIANTS[constant]:
                compile(kernel, name, {**constants, constant: value})
"""


def run(*command: str, interpreted: bool) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TRITON_INTERPRET": "1" if interpreted else "0"}
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=280, check=False
    )


@pytest.mark.parametrize(
    "part", ["golden and planes", "golden and not planes", "every_kind", "not golden and not every_kind"]
)
def test_interpreted_kernels_do_what_the_reference_does(part: str) -> None:
    """Bytes and bits of all kinds of frames; in processes of their own, since Triton decides at its import how kernels run."""
    done = run("-m", "pytest", "-q", "-m", "not slow", "-k", part, str(HERE / "gpu_interpreted.py"), interpreted=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_every_kernel_compiles() -> None:
    """Machine code for sm_90 comes of every kernel, whichever of its constants is another; it fuses and flushes nothing."""
    done = run("-c", COMPILE, interpreted=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
