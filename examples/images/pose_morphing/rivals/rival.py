"""What all rivals have in common with the copy attention: they look at the source at a level."""

from torch import nn


class Rival(nn.Module):
    """Looks at the source at every level, from the first step on."""

    def active(self, coarse_only: bool) -> bool:
        return True
