"""The reference backend keeps the contract."""

from tests.contracts.backend import BackendContract


class TestReference(BackendContract):
    backend = "reference"
