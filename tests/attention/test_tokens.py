"""Special tokens on every backend that runs without a GPU."""

from ndgpa.testing import TokensContract


class TestReference(TokensContract):
    backend = "reference"


class TestTorch(TokensContract):
    backend = "torch"
