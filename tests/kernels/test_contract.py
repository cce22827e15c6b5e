"""The `triton` backend keeps the contract of every backend, in float32."""

import pytest
import torch

from ndgpa.testing import BackendContract


class TestTriton(BackendContract):
    backend = "triton"
    dtype = torch.float32
    tolerance = 2e-5

    @pytest.mark.skip(reason="needs bfloat16; test_attention keeps the same budget in two dtypes")
    def test_errors_keep_to_twice_those_of_plain_torch(self) -> None: ...
