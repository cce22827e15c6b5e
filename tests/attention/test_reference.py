"""The reference backend keeps the contract."""

from typing import Any

from ndgpa.testing import BackendContract


class TestReference(BackendContract):
    backend = "reference"

    # With itself there is nothing to compare it.
    test_it_agrees_with_the_reference_to_the_second_derivative: Any = None
    test_second_derivatives_agree_where_logits_tie: Any = None
