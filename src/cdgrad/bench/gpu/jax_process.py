"""The process that times `cdgrad.optax` on JAX's GPU: it prints its rows as JSON, all of them after each.

It compiles its programs at once and times them after a line on standard input, when nothing else is timed.

JAX has its own CUDA libraries and its own pool of memory, so PyTorch is not in this process.
"""

# jax and optax type their functions in part.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownLambdaType=false, reportMissingTypeStubs=false
from __future__ import annotations

import json
import os
import select
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from statistics import median
from typing import Any

from cdgrad.machine import end_with_parent

FLOOR = "multiply"
# Kernels (h, w, I, O), 73 MB in float32: more than an L2 cache holds.
_KERNELS = [(3, 3, 512, 512)] * 5 + [(1, 1, 512, 2048)] * 4 + [(3, 3, 256, 256)] * 4
_REPEATS = 20


def main(metrics: Sequence[str], *, rehearsal: bool) -> None:
    """Print the backend, then the rows by name, and after each one again.

    A row has microseconds and the ratio to the floor, in a loop that is compiled as a whole.
    """
    end_with_parent()
    # JAX would take most of the memory at its start.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax

    rows: dict[str, dict[str, float]] = {}
    floor = 0.0
    print(json.dumps({"backend": jax.default_backend(), "rows": rows}), flush=True)
    if not rehearsal and jax.default_backend() != "gpu":
        return
    tree = gradients(rehearsal=rehearsal)
    repeats, rounds = (2, 1) if rehearsal else (_REPEATS, 7)
    names = [FLOOR, *metrics]
    programs: dict[str, Any] = {}
    while len(programs) < len(names) and not select.select([sys.stdin], [], [], 0)[0]:
        name = names[len(programs)]
        programs[name] = _program(operation(name), tree, repeats)
    sys.stdin.readline()
    for name in names:
        program = programs.get(name) or _program(operation(name), tree, repeats)
        seconds = _seconds(program, tree, rounds) / repeats
        floor = floor or seconds
        rows[name] = {"us": 1e6 * seconds, "over_floor": seconds / floor}
        print(json.dumps({"backend": jax.default_backend(), "rows": rows}), flush=True)


def operation(name: str) -> Callable[[Any], Any]:
    """What is applied to a tree of kernels."""
    import jax

    if name == FLOOR:
        return lambda tree: jax.tree.map(lambda g: g * 0.999, tree)
    if not find_spec("optax"):
        from cdgrad.optax import directed

        return lambda tree: jax.tree.map(lambda kernel: directed(kernel, name, axis=-1), tree)
    import optax

    from cdgrad.optax import channel_directed

    return lambda tree: channel_directed(name).update(tree, optax.EmptyState())[0]


def gradients(*, rehearsal: bool) -> Any:
    """Gradients of convolutions as an optimizer gets them."""
    import jax

    shapes = [(3, 3, 2, 4)] if rehearsal else _KERNELS
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return {f"conv{i}": {"kernel": jax.random.normal(keys[i], shape)} for i, shape in enumerate(shapes)}


def _program(function: Callable[[Any], Any], tree: Any, repeats: int) -> Any:
    """A loop of `repeats` applications on the device, compiled."""
    import jax

    def loop(tree: Any) -> Any:
        return jax.lax.fori_loop(0, repeats, lambda _, each: function(each), tree)

    return jax.jit(loop).lower(tree).compile()


def _seconds(program: Any, tree: Any, rounds: int) -> float:
    """The median time of the program."""
    import jax

    jax.block_until_ready(program(tree))
    times: list[float] = []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready(program(tree))
        times.append(time.perf_counter() - start)
    return median(times)


if __name__ == "__main__":
    main([each for each in sys.argv[1:] if each != "--rehearse"], rehearsal="--rehearse" in sys.argv)
