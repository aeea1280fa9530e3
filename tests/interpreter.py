"""Triton's interpreter for the suite: the GPU kernels run on the CPU, in numpy."""

import os
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np


def enable():
    """Interpret every kernel. To be called before anything imports Triton, which reads the variable once."""
    os.environ["TRITON_INTERPRET"] = "1"
    if find_spec("triton"):
        from triton.runtime import interpreter

        interpreter.ScanOps.generic_scan = scan_rows
        interpreter.ReduceOps.generic_reduce = reduce_rows
        interpreter._patch_lang = once_per_module(interpreter._patch_lang)
        interpreter._get_np_dtype = once_per_name(interpreter._get_np_dtype)
        builder = interpreter.interpreter_builder
        # Whether 32 bits overflow is computed in 64 bits and, without debug, looked at by nobody.
        builder.options = replace(builder.options, sanitize_overflow=False)


def once_per_module(patch):
    """The language is interpreted from a module's first call on, not made so again by every call."""
    patched = set()

    def patch_first(fn):
        if fn.__module__ not in patched:
            patch(fn)
            patched.add(fn.__module__)
        return SimpleNamespace(restore=lambda: None)

    return patch_first


def once_per_name(dtype_of):
    """numpy's type of Triton's, which is looked up in a table that is made for it."""
    known = {}

    def look_up(triton_dtype):
        scalar = triton_dtype.scalar
        if scalar.name not in known:
            known[scalar.name] = dtype_of(scalar)
        return known[scalar.name]

    return look_up


def scan_rows(self, inputs):
    """`tl.associative_scan` by whole rows. The interpreter's own goes by scalars, 30 times slower."""
    arrays = [np.moveaxis(x.handle.data, self.axis, 0) for x in inputs]
    sums = []
    for row in zip(*arrays, strict=True):
        tensors = [self.to_tensor(part, x.dtype) for part, x in zip(row, inputs, strict=True)]
        sums.append(self.combine_fn.fn(*sums[-1], *tensors) if sums else tensors)
    return [
        self.to_tensor(np.stack([each[i].handle.data for each in sums], self.axis), x.dtype)
        for i, x in enumerate(inputs)
    ]


def reduce_rows(self, inputs):
    """`tl.reduce`, of which `tl.flip` consists, by whole rows: the interpreter's own goes by scalars, too."""
    values, axis = self.unravel(inputs, self.axis)
    arrays = [np.moveaxis(x.handle.data, axis, 0) for x in values]
    result = None
    for row in zip(*arrays, strict=True):
        tensors = [self.to_tensor(part, x.dtype) for part, x in zip(row, values, strict=True)]
        combined = self.combine_fn.fn(*result, *tensors) if result else tensors
        result = combined if isinstance(combined, tuple | list) else [combined]
    data = [np.asarray(x.handle.data) for x in result]
    if self.keep_dims:
        shape = [1 if self.axis in (None, i) else size for i, size in enumerate(inputs[0].handle.data.shape)]
        data = [each.reshape(shape) for each in data]
    return [self.to_tensor(each, x.dtype) for each, x in zip(data, values, strict=True)]
