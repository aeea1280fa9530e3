"""The operator on GPUs: Triton kernels, and their launch."""
