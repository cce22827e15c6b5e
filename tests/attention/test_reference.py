"""The reference backend keeps the contract."""

from ndgpa.testing import BackendContract


class TestReference(BackendContract):
    backend = "reference"
