"""Real-ESRGAN's dense blocks in push form: no concatenation, and convolutions that are wide.

Pull form (the published code): layer k convolves the concatenation of x and f_1 ... f_(k-1).
Push form: as soon as f_i is there, one convolution carries it to all later layers, whose sums wait in one tensor.

======  ================  ==================
source  pull: conv k      push: convolution
======  ================  ==================
x       64 -> 32          64 -> 192
f_1     96 -> 32          32 -> 160
f_2     128 -> 32         32 -> 128
f_3     160 -> 32         32 -> 96
f_4     192 -> 64         32 -> 64
======  ================  ==================

The same weights, the same products; they are added in another order.
"""

import torch
from spandrel.architectures.__arch_helpers.block import RRDB, ResidualDenseBlock_5C
from torch import Tensor, nn
from torch.nn import functional

LEAK = 0.2
DAMPING = 0.2
"""Share of a block's result that is added to its input."""


class PushedDense(nn.Module):
    """Gives what the ``ResidualDenseBlock_5C`` gives whose convolutions it takes."""

    def __init__(self, convs: list[nn.Conv2d]) -> None:
        super().__init__()
        self.growth = convs[0].out_channels  # 32
        width = convs[0].in_channels  # 64
        waiting = sum(conv.out_channels for conv in convs)  # 192
        ends = [width + self.growth * source for source in range(len(convs))]  # 64, 96, 128, 160, 192
        pushes = []
        for source, (start, stop) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            push = nn.Conv2d(stop - start, waiting, 3, padding=1, bias=source == 0, device="meta")
            weight = torch.cat([conv.weight[:, start:stop] for conv in convs[source:]])
            push.weight = nn.Parameter(weight, requires_grad=False)
            if source == 0:
                biases = [conv.bias for conv in convs if conv.bias is not None]
                push.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
            pushes.append(push)
            waiting -= self.growth
        self.first, self.later = pushes[0], nn.ModuleList(pushes[1:])

    def forward(self, x: Tensor) -> Tensor:
        """[B, 64, H, W] -> the same shape."""
        waiting: Tensor = self.first(x)  # [B, 192, H, W]: what x gives to each of the five layers
        for push in self.later:
            ready = functional.leaky_relu(waiting[:, : self.growth], LEAK)  # [B, 32, H, W]
            waiting = waiting[:, self.growth :] + push(ready)
        return torch.add(x, waiting, alpha=DAMPING)


class PushedBlock(nn.Module):
    """Gives what the ``RRDB`` gives whose three dense blocks it takes, in push form."""

    def __init__(self, dense: list[PushedDense]) -> None:
        super().__init__()
        self.dense = nn.ModuleList(dense)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 64, H, W] -> the same shape."""
        y = x
        for dense in self.dense:
            y = dense(y)
        return torch.add(x, y, alpha=DAMPING)


def push(net: nn.Module) -> bool:
    """Put the dense blocks of an RRDBNet into push form, in place.

    Returns:
        False, and the net untouched, where it has none, or one of another structure (ESRGAN+, norms, other slopes).
    """
    found = [(parent, name, block) for parent in net.modules() for name, block in _blocks(parent)]
    convs = [[_convolutions(dense) for dense in (b.RDB1, b.RDB2, b.RDB3)] for _, _, b in found]
    made = [PushedBlock([PushedDense(c) for c in dense if c]) for dense in convs if all(dense)]
    if not found or len(made) < len(found):
        return False
    for (parent, name, _), block in zip(found, made, strict=True):
        setattr(parent, name, block)
    return True


def _blocks(parent: nn.Module) -> list[tuple[str, RRDB]]:
    return [(name, child) for name, child in parent.named_children() if isinstance(child, RRDB)]


def _convolutions(dense: ResidualDenseBlock_5C) -> list[nn.Conv2d] | None:
    """The five convolutions of a dense block, 3x3, biased, leaky but for the last; None where it has anything else."""
    if dense.conv1x1 is not None:
        return None
    layers = [list(layer) for layer in (dense.conv1, dense.conv2, dense.conv3, dense.conv4, dense.conv5)]
    convs = [layer[0] for layer in layers]
    leaky = [[part.negative_slope for part in layer[1:] if isinstance(part, nn.LeakyReLU)] for layer in layers]
    lengths = [len(layer) for layer in layers]
    if lengths != [2, 2, 2, 2, 1] or leaky != [[LEAK]] * 4 + [[]] or not all(isinstance(c, nn.Conv2d) for c in convs):
        return None
    width, growth = convs[0].in_channels, convs[0].out_channels
    sizes = [(width + growth * k, growth if k < 4 else width) for k in range(5)]
    if any(
        (conv.in_channels, conv.out_channels) != size or not _is_plain(conv)
        for conv, size in zip(convs, sizes, strict=True)
    ):
        return None
    return convs


def _is_plain(conv: nn.Conv2d) -> bool:
    shape = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups)
    return shape == ((3, 3), (1, 1), (1, 1), (1, 1), 1) and conv.padding_mode == "zeros" and conv.bias is not None
