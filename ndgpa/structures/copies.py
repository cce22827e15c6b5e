"""Copies of a structure on other devices, each made once."""

import abc
from typing import Any, TypeVar

import torch

T = TypeVar("T", bound="KeepsCopies")


class KeepsCopies(abc.ABC):
    """What is on one device and never changes: `to` copies it, once for each device."""

    _copies: "dict[torch.device, Any] | None" = None

    @property
    @abc.abstractmethod
    def device(self) -> torch.device:
        """Where the tensors are."""

    @abc.abstractmethod
    def _move(self: T, device: torch.device) -> T:
        """Make the same structure with its tables on `device`."""

    def to(self: T, device: torch.device | str) -> T:
        """Copy the tables to `device`, once; the structure itself where they are there already."""
        device = torch.device(device)
        if device == self.device:
            return self
        if self._copies is None:
            self._set_copies({})
        copies: Any = self._copies
        if device not in copies:
            copies[device] = self._move(device)
            if device.type == "meta":
                copies[device]._set_copies({self.device: self})
        return copies[device]

    def _set_copies(self, copies: "dict[torch.device, Any]") -> None:
        """Also in a frozen dataclass."""
        object.__setattr__(self, "_copies", copies)

    @property
    def _with_values(self: T) -> T:
        """The structure that a copy on device "meta" was made from; any other itself."""
        return self.to("cpu") if self.device.type == "meta" else self

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what can be made again; a copy on device "meta" keeps what it was made from."""
        made = {"_kept", "_coarsened"}
        if self.device.type != "meta":
            made.add("_copies")
        return {name: x for name, x in self.__dict__.items() if name not in made}
