"""Compiles the GPU kernels without a GPU, and records what the compiler made of them.

    python benchmarks/offline.py [--triton FOLDER ...] [--arch 80 90 120 gfx942] [--out FILE.json]

A folder holds another Triton (``pip install --target FOLDER --no-deps triton==3.6.0``); each is used in its
own process. Recorded of every metric, dtype, access and architecture: registers, bytes of stack, the bytes
that ptxas says are stored to it and loaded from it (spills), loads and stores of 16 and of 8 bytes in the
PTX, and along what the lanes of loads and stores lie in Triton's GPU IR. ROCm targets have spilled registers
in place of bytes. The access `resnet50` is the kernel of its gradients: all are aligned but those of the
first layer, of 147 columns.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

METRICS = ("reweighted:lam=3", "sobolev:lam=1", "mean-sobolev:lam=1")  # free and periodic are one kernel
ACCESSES = {"aligned": 0b001, "contiguous": 0b010, "strided": 0b100, "resnet50": 0b011}  # what is compiled
LAYOUT = re.compile(r"(#\w+) = #\w+\.blocked<\{sizePerThread = \[(.*?)\], threadsPerWarp = \[(.*?)\].*?\}>")
ACCESS = r"tt\.{} .*tensor<\d+x\d+x\d+x!tt\.ptr<\w+>, (#\w+)>"
SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")


def layouts(ttgir: str, access: str) -> list[tuple[list[int], list[int]]]:
    """A thread's elements, and lanes, along rows, segments and columns, of the accesses to gradients."""
    numbers = {name: (_numbers(size), _numbers(lanes)) for name, size, lanes in LAYOUT.findall(ttgir)}
    return [numbers[name] for name in re.findall(ACCESS.format(access), ttgir)]


@contextmanager
def ptxas_logs() -> Generator[list[str]]:
    """What ptxas writes inside; Triton asks it to report and discards that."""
    logs: list[str] = []
    run = subprocess.run

    def keeping(*arguments: Any, **options: Any) -> Any:
        done = run(*arguments, **options)
        if hasattr(options.get("stderr"), "name"):
            logs.append(Path(options["stderr"].name).read_text())
        return done

    with patch("subprocess.run", keeping):
        yield logs


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def compiled(metric: str, dtype: str, access: str, arch: str) -> dict[str, object]:
    """The kernel of an access, for `arch`: a compute capability as 90, or a ROCm name as gfx942."""
    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler import compile as build

    from cdgrad import parse_metric
    from cdgrad.ops.triton import kernels, launch, tables

    torch_dtype = getattr(torch, dtype)
    parsed = parse_metric(metric)
    tile = tables.TILES[type(parsed)][torch_dtype.itemsize]
    rocm = arch.startswith("gfx")
    constants = launch.constants_of(parsed, torch_dtype, ACCESSES[access], tile) | {"ROCM": rocm}
    signature = {
        "addresses": "*i64",
        "programs": "*i32",
        "records": "*i64",
        "weights": "*fp64",
        "scratch": "*fp64",
    }
    names = kernels.directed.arg_names
    source = ASTSource(
        kernels.directed,
        signature | dict.fromkeys(constants, "constexpr"),
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in range(len(signature))},
    )
    warp = 64 if arch.startswith("gfx9") else 32  # RDNA's are half as wide as CDNA's
    target = GPUTarget("hip", arch, warp) if rocm else GPUTarget("cuda", int(arch), 32)
    start = sum(os.times()[:4])
    options = {"num_warps": tile.warps, **launch.FUSED} | ({} if rocm else {"maxnreg": 128})
    with ptxas_logs() as logs:
        kernel = build(source, target=target, options=options)
    row: dict[str, object] = {"triton": triton.__version__, "arch": arch, "metric": metric, "dtype": dtype}
    aligned = ACCESSES[access] & 1
    row |= {"tile": (tile.rows, tile.segments, tile.columns >> (not aligned)), "access": access}
    row |= {
        "compile_cpu_s": round(sum(os.times()[:4]) - start, 2),  # the compiler's own and its children's
        "claims": kernel.asm["ttgir"].count("tt.contiguity"),  # of contiguity, see cdgrad.ops.triton.access
        "layouts": layouts(kernel.asm["ttgir"], "load"),
        "layouts_of_stores": layouts(kernel.asm["ttgir"], "store"),
    }
    if not rocm:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(kernel.asm["cubin"])
            file.flush()
            tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
            usage = subprocess.run(
                [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
            )
        resources = dict(re.findall(r"(REG|STACK):(\d+)", usage.stdout + usage.stderr))
        row |= {"registers": int(resources["REG"]), "stack_bytes": int(resources["STACK"])}
        stores, loads = (sum(map(int, each)) for each in zip(*SPILLS.findall("".join(logs)), strict=True))
        row |= {"spill_store_bytes": stores, "spill_load_bytes": loads}
        for name, instruction in (("loads", "ld"), ("stores", "st")):
            for width, types in ((16, "v4.b32|v2.b64"), (8, "v2.b32|v4.b16")):
                found = re.findall(rf"{instruction}\.global\S*\.(?:{types})\b", kernel.asm["ptx"])
                row[f"{name}_of_{width}_bytes"] = len(found)
    else:
        assembly = kernel.asm["amdgcn"]
        for name, key in (("registers", "vgpr_count"), ("spilled_registers", "vgpr_spill_count")):
            row[name] = int(re.findall(rf"\.{key}:\s*(\d+)", assembly)[0])
        for name in ("load", "store"):
            for width in (4, 2):
                instruction = rf"(?:global|buffer)_{name}_(?:dwordx{width}|b{32 * width})\b"  # CDNA, RDNA
                found = re.findall(instruction, assembly)
                row[f"{name}s_of_{4 * width}_bytes"] = len(found)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--triton", nargs="*", default=[], type=Path)
    parser.add_argument("--arch", nargs="*", default=["80", "90", "120"])
    parser.add_argument("--metric", nargs="*", default=list(METRICS))
    parser.add_argument("--dtype", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--access", nargs="*", default=["aligned"], choices=ACCESSES)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows: list[dict[str, object]] = []
    if arguments.triton:
        rest: list[str] = []
        for name in ("arch", "metric", "dtype", "access"):
            rest += [f"--{name}", *map(str, getattr(arguments, name))]
        for folder in arguments.triton:
            path = os.pathsep.join([str(folder.resolve()), os.environ.get("PYTHONPATH", "")])
            with tempfile.TemporaryDirectory() as cache:
                environment = {**os.environ, "PYTHONPATH": path, "TRITON_CACHE_DIR": cache}
                done = subprocess.run(
                    [sys.executable, __file__, *rest], env=environment, capture_output=True, text=True
                )
            if done.returncode:
                said = done.stderr.strip() or f"exit status {done.returncode}"
                rows.append({"triton": folder.name, "failed": said.splitlines()[-1]})
            rows += [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    else:
        cases = product(arguments.arch, arguments.dtype, arguments.metric, arguments.access)
        for arch, dtype, metric, access in cases:
            rows.append(compiled(metric, dtype, access, arch))
            print(json.dumps(rows[-1]), flush=True)
    if arguments.out:
        arguments.out.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


if __name__ == "__main__":
    main()
