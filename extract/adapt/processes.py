"""The processes that train together: one, or those that ``accelerate launch`` started."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from extract.devices import pick_device
from extract.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")

BUCKET_NUMBERS = 1 << 25
"""Gradients that are added up together (134 MB)."""


@dataclass(frozen=True)
class Processes:
    """This process among those that train together."""

    index: int
    number: int
    device: "torch.device"

    @classmethod
    def started(cls, device: str) -> "Processes":
        """As ``accelerate launch`` (or torchrun) started them, each on a device of its own.

        Args:
            device: as ``--device`` names it; of several processes ``auto`` or ``cpu``.

        Raises:
            UsageError: several processes were given one GPU.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls(0, 1, pick_device(device))
        if device not in {"auto", "cpu"}:
            raise UsageError(f"--device {device}: of several processes each takes a GPU of its own: leave it out")
        from accelerate import PartialState

        state = PartialState(cpu=device == "cpu")
        return cls(state.process_index, state.num_processes, state.device)

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes what all share."""
        return self.index == 0

    def own(self, items: Sequence[T]) -> Sequence[T]:
        """Its part of what is dealt out."""
        return items[self.index :: self.number]

    def wait(self) -> None:
        """Until all have come here."""
        if self.number > 1:
            import torch

            torch.distributed.barrier()

    def added_up(self, values: "Tensor") -> "Tensor":
        """The sum over all processes, in place."""
        if self.number > 1:
            import torch

            torch.distributed.all_reduce(values)
        return values

    def agree(self, due: bool) -> bool:
        """What the first of them thinks."""
        if self.number == 1:
            return due
        import torch

        said = torch.tensor(float(due and self.is_first), device=self.device)
        return bool(self.added_up(said) > 0)

    def add_up_gradients(self, parameters: "Iterable[Tensor]") -> None:
        """Every parameter's gradient becomes the sum over all processes; one that saw nothing adds zeros.

        Written out, because torch's own wrapper takes means, expects a gradient of every parameter in every step (the
        head learns first, alone), and does not go with recomputed layers.
        """
        if self.number == 1:
            return
        import torch

        waiting: list[Tensor] = []
        numbers = 0
        for parameter in (*parameters, None):
            if parameter is not None:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                waiting.append(parameter.grad)
                numbers += parameter.numel()
            if waiting and (parameter is None or numbers >= BUCKET_NUMBERS):
                flat = self.added_up(torch.cat([gradient.flatten() for gradient in waiting]))
                for gradient, summed in zip(waiting, torch.split(flat, [one.numel() for one in waiting]), strict=True):
                    gradient.copy_(summed.view_as(gradient))
                waiting, numbers = [], 0
