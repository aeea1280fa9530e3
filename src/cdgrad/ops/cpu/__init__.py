"""The operator on CPU tensors: kernels compiled by numba, and their launch."""
