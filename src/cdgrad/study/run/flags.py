"""What the user's code sets in its process: each run starts as the first run of its modules did.

A module is imported once a process, and what it sets then, such as ``torch.set_float32_matmul_precision``,
holds for the runs of that module and no others. What a run itself sets ends with it.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from operator import attrgetter
from typing import Any

import numpy as np

from cdgrad.study.callables import load_callable
from cdgrad.study.records.code import user_code

# Below torch.backends. A precision before the older functions for it, which raise where the two disagree.
_BACKENDS = (
    *("fp32_precision", "cuda.matmul.fp32_precision"),
    *("cudnn.fp32_precision", "cudnn.conv.fp32_precision", "cudnn.rnn.fp32_precision"),
    *("mkldnn.fp32_precision", "mkldnn.matmul.fp32_precision"),
    *("mkldnn.conv.fp32_precision", "mkldnn.rnn.fp32_precision"),
    *("cudnn.allow_tf32", "cudnn.enabled", "cudnn.benchmark", "cudnn.benchmark_limit", "cudnn.deterministic"),
    *(
        "mkldnn.enabled",
        "mkldnn.deterministic",
        "miopen.immediate",
        "opt_einsum.enabled",
        "opt_einsum.strategy",
    ),
    *(f"cuda.matmul.allow_{kind}_reduced_precision_reduction" for kind in ("fp16", "bf16")),
    "cuda.matmul.allow_fp16_accumulation",
)
_SDP = ("flash", "mem_efficient", "math", "cudnn")  # kernels of scaled_dot_product_attention
_Flag = tuple[Callable[[], Any], Callable[[Any], object]]
_SET: dict[str, dict[str, Any]] = {}  # what each module set when it was imported
_new_process_needed: list[str] = []  # the reasons


@contextmanager
def of_modules(names: Sequence[str], folder: str) -> Generator[None]:
    """Import callables; inside, the process is as the import of their modules left it, afterwards as before.

    Args:
        names: each ``module:callable``.
        folder: of the specification.

    Raises:
        StudyError: as `load_callable`.
    """
    before = _values()
    try:
        for name in names:
            module = name.partition(":")[0]
            _set(_SET.get(module, {}))
            start = _values()
            load_callable(name)
            _SET.setdefault(module, _changes(start, _values()))
        start, known = _values(), {*sys.modules}
        try:
            yield
        finally:
            # A module that the run imported may have set it, and would not be imported again.
            if (changes := _changes(start, _values())) and user_code(folder, {*sys.modules} - known):
                _new_process_needed.extend(changes)
    finally:
        _set(before)


def need_new_process() -> bool:
    """Whether later runs of this process could start otherwise than its first one."""
    return bool(_new_process_needed)


@lru_cache
def _flags() -> dict[str, _Flag]:
    """A function that reads and one that sets each flag."""
    import torch

    backends: Any = torch.backends
    attributes: dict[str, _Flag] = {}
    for path in _BACKENDS:
        owner, _, name = path.rpartition(".")
        try:
            holder = attrgetter(owner)(backends) if owner else backends
        except AttributeError:  # of a later torch
            continue
        attributes[path] = partial(getattr, holder, name), partial(setattr, holder, name)
    return {
        "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
        "default device": (torch.get_default_device, _set_default_device),
        "threads": (torch.get_num_threads, torch.set_num_threads),
        "gradients": (torch.is_grad_enabled, torch.set_grad_enabled),
        "anomalies": (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
        "deterministic": (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
        **attributes,
        "matrix products": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        "attention": (backends.mha.get_fastpath_enabled, backends.mha.set_fastpath_enabled),
        **{
            f"{kind} attention": (
                getattr(backends.cuda, f"{kind}_sdp_enabled"),
                getattr(backends.cuda, f"enable_{kind}_sdp"),
            )
            for kind in _SDP
        },
        "autocast on cpu": (
            partial(torch.is_autocast_enabled, "cpu"),
            partial(torch.set_autocast_enabled, "cpu"),
        ),
        "autocast on cuda": (
            partial(torch.is_autocast_enabled, "cuda"),
            partial(torch.set_autocast_enabled, "cuda"),
        ),
        "numpy's errors": (np.geterr, lambda errors: np.seterr(**errors)),
        "working directory": (os.getcwd, os.chdir),
    }


def _set_default_device(device: Any) -> None:
    import torch

    torch.set_default_device(None if device == torch.device("cpu") else device)


def _values() -> dict[str, Any]:
    """The value of each flag; None where it cannot be read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch discourages some of its older flags
        return {name: _value(read) for name, (read, _) in _flags().items()}


def _value(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (
        AttributeError,
        OSError,
        RuntimeError,
    ):  # of another torch, a removed folder, or two that disagree
        return None


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in new.items() if value != old[name]}


def _set(values: Mapping[str, Any]) -> None:
    """Set the flags that differ from `values`; one that cannot be set needs a new process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, value in [*values.items()] * 2:  # torch's older precisions change the newer ones
            read, write = _flags()[name]
            if value is None or _value(read) == value:
                continue
            try:
                write(value)
            except (OSError, RuntimeError):
                _new_process_needed.append(name)
