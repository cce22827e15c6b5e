"""The `triton` backend: kernels, and the operators that launch them."""
