"""A projection that does for every row what `fusion.model.Projection` folds into its weights."""

import torch

from fusion.model import Projection


class PlainProjection(torch.nn.Module):
    """Casts, standardises and projects every row that it is given, one operation after the other."""

    def __init__(self, ours: Projection) -> None:
        super().__init__()
        self.ours = ours

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        standardised = (rows.float() - self.ours.mean) * self.ours.scale
        return torch.nn.functional.linear(standardised, self.ours.weight, self.ours.bias)
