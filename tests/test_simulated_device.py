"""The pretended GPU: small programs, of which one can say how often they copy, wait and launch."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from tests.simulated_device import Counts, SimulatedDevice


@pytest.fixture
def device():
    with SimulatedDevice() as simulated:
        yield simulated


@pytest.fixture
def x(device):
    """2 x 3 numbers on the device, 24 bytes; nothing is counted yet."""
    found = torch.arange(6.0).reshape(2, 3).to("cuda")
    device.counts = Counts()
    return found


def test_it_says_that_it_is_a_gpu(x):
    assert (x.device, x.is_cuda, torch.cuda.is_available()) == (torch.device("cuda:0"), True, True)
    assert (x.half().device.type, torch.zeros_like(x).device.type, x[0].device.type) == ("cuda",) * 3
    assert torch.ones(2, device=x.device).device == x.device


def test_values_are_those_of_the_cpu(x):
    expected = (torch.arange(6.0).reshape(2, 3) @ torch.ones(3, 2)).add_(1).tolist()
    assert (x @ torch.ones(3, 2, device="cuda")).add_(1).tolist() == expected
    view = x[1]
    view.mul_(10)
    assert x.cpu().tolist() == [[0, 1, 2], [30, 40, 50]]


COPIES = {  # what it is -> the program, (uploads, their bytes, fetches, their bytes), waits
    "there": (lambda x: torch.ones(5).to(x.device), (1, 20, 0, 0), {"upload": 1}),
    "there by name": (lambda _: torch.ones(5).cuda(), (1, 20, 0, 0), {"upload": 1}),
    "there, narrowed first": (lambda _: torch.ones(5).to("cuda", torch.float16), (1, 10, 0, 0), {"upload": 1}),
    "there, unpinned": (lambda _: torch.ones(5).to("cuda", non_blocking=True), (1, 20, 0, 0), {"upload": 1}),
    "there, not waiting": (lambda _: torch.ones(5).pin_memory().to("cuda", non_blocking=True), (1, 20, 0, 0), {}),
    "there, from a pinned buffer's part": (
        lambda _: torch.empty(8, pin_memory=True)[2:4].to("cuda", non_blocking=True), (1, 8, 0, 0), {},
    ),
    "into": (lambda x: x.copy_(torch.ones(2, 3)), (1, 24, 0, 0), {"upload": 1}),
    "a list": (lambda _: torch.tensor([1.0, 2.0], device="cuda"), (1, 8, 0, 0), {"upload": 1}),
    "a list like another": (lambda x: x.new_tensor([1.0, 2.0]), (1, 8, 0, 0), {"upload": 1}),
    "indices of a list": (lambda x: x[[0, 1]], (1, 16, 0, 0), {"upload": 1}),
    "indices of the host": (lambda x: x[torch.tensor([0])], (1, 8, 0, 0), {"upload": 1}),
    "a module": (lambda _: nn.Linear(3, 2).requires_grad_(False).to("cuda"), (2, 32, 0, 0), {"upload": 2}),
    "already there": (lambda x: x.to("cuda"), (0, 0, 0, 0), {}),
    "back": (lambda x: x.cpu(), (0, 0, 1, 24), {"fetch": 1}),
    "back as doubles": (lambda x: x.to("cpu", torch.float64), (0, 0, 1, 24), {"fetch": 1}),
    "back as a list": (lambda x: x.tolist(), (0, 0, 1, 24), {"fetch": 1}),
    "back, not waiting": (lambda x: x.to("cpu", non_blocking=True), (0, 0, 1, 24), {}),
    "back into": (lambda x: torch.empty(2, 3).copy_(x), (0, 0, 1, 24), {"fetch": 1}),
    "back into, unpinned": (lambda x: torch.empty(2, 3).copy_(x, non_blocking=True), (0, 0, 1, 24), {"fetch": 1}),
    "back into pinned memory": (
        lambda x: torch.empty(2, 3, pin_memory=True).copy_(x, non_blocking=True), (0, 0, 1, 24), {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("what", COPIES)
def test_copies(device, x, what, inference):
    program, copies, waits = COPIES[what]
    with torch.inference_mode(inference), device.counted() as counts:
        program(x)
    assert (counts.uploads, counts.upload_bytes, counts.fetches, counts.fetch_bytes) == copies
    assert counts.waits == waits
    assert counts.copies == copies[0] + copies[2]


WAITS = {
    "item": lambda x: x[0, 0].item(),
    "item of a condition": lambda x: bool((x > 1).any()),
    "item of a comparison": lambda x: torch.equal(x, x),
    "item of a check": lambda x: torch.linalg.inv(torch.eye(2, device=x.device)),
    "nonzero": lambda x: x.nonzero(),
    "nonzero of a mask": lambda x: x[x > 1],
    "nonzero of where": lambda x: torch.where(x > 1),
    "nonzero of a mask that is written": lambda x: x.__setitem__(x > 3, torch.ones(2, device=x.device)),
    "nonzero of repetitions": lambda x: torch.repeat_interleave(torch.tensor([1, 2]).to(x.device)),
    "device": lambda _: torch.cuda.synchronize(),
    "stream": lambda _: torch.cuda.Stream().synchronize(),
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("what", WAITS)
def test_waits(device, x, what, inference):
    with torch.inference_mode(inference), device.counted() as counts:
        WAITS[what](x)
    del counts.waits["upload"]
    assert counts.waits == {what.split()[0]: 1}
    assert counts.stalls == counts.waits


@pytest.mark.parametrize(
    "program",
    [
        lambda x: x.masked_fill(x > 1, 0),
        lambda x: x.__setitem__(x > 1, 0.0),
        lambda x: torch.where(x > 1, x, 0.0),
        lambda x: x.flatten()[1:3].reshape(2, 1).expand(2, 5),
        lambda _: torch.repeat_interleave(torch.ones(2, dtype=torch.long, device="cuda"), output_size=2),
        lambda _: torch.cuda.Event().wait(),
        lambda _: torch.cuda.current_stream().wait_stream(torch.cuda.Stream()),
        lambda x: x.record_stream(torch.cuda.Stream()),
    ],
    ids=["fill", "write a number", "where", "views", "known repetitions", "event", "stream", "record stream"],
)
def test_nothing_to_wait_for(device, x, program):
    program(x)
    assert device.counts.waits == {}
    assert device.counts.copies == 0


def test_a_result_that_was_asked_for_is_no_stall(device, x):
    x.cpu()
    torch.cuda.Event().synchronize()
    assert device.counts.waits == {"fetch": 1, "event": 1}
    assert device.counts.stalls == {}


@pytest.mark.parametrize("inference", [False, True])
def test_kernels(device, x, inference):
    """A Linear is one product; views, empty memory and what is contiguous already launch nothing."""
    layer = nn.Linear(3, 2).requires_grad_(False).to("cuda")
    with torch.inference_mode(inference), device.counted() as counts:
        layer(x.reshape(2, 3).contiguous()).relu_().unsqueeze(0)[0, 1:]
        torch.empty(7, device="cuda")
        x.new_empty(3)
        x[:0] + 1
    assert counts.kernels == {"aten.addmm": 1, "aten.relu_": 1}
    with device.counted() as counts:
        x.t().reshape(6)  # of a transposed one, reshape makes a copy
        torch.zeros(3, device="cuda")
    assert counts.kernels == {"aten.clone": 1, "aten.zeros": 1}


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (lambda x: x + torch.ones(2, 3), r"aten.add.Tensor: expected all tensors to be on the same device.*\(2, 3\)"),
        (lambda x: torch.cat([x, torch.ones(1, 3)]), "expected all tensors to be on the same device"),
        (lambda x: torch.ones(2)[x[0, :1].long()], "indices are on the device, the indexed tensor is on the CPU"),
        (lambda x: x.numpy(), "can't convert cuda:0 device type tensor to numpy"),
        (lambda x: x.pin_memory(), "only memory of the host can be pinned"),
    ],
    ids=["add", "cat", "index", "numpy", "pin"],
)
def test_what_cuda_refuses(x, program, message):
    with pytest.raises((RuntimeError, TypeError), match=message):
        program(x)


def test_a_number_of_the_host_may_take_part(device, x):
    assert (x + torch.tensor(1.0)).device.type == "cuda"
    assert device.counts.copies == 0


def test_threads_see_it_and_their_counts_add_up(device):
    def work(n):
        return (torch.ones(n).to("cuda") + 1).sum().item()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(1, 41))) == [2.0 * n for n in range(1, 41)]
    assert (device.counts.uploads, device.counts.waits["item"]) == (40, 40)
    thread = threading.Thread(target=work, args=(3,))
    thread.start()
    thread.join()
    assert device.counts.uploads == 41


def test_networks_of_the_pipeline_run_on_it(device):
    """Convolutions channels last, norms, attention: the values of the CPU, and not a wait."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.GELU(), nn.Flatten(2)).eval().requires_grad_(False)
    attention = nn.TransformerEncoderLayer(8, 2, batch_first=True).eval().requires_grad_(False)
    images = torch.rand(2, 3, 6, 6)
    expected = attention(net(images).mT)
    net.to("cuda").to(memory_format=torch.channels_last)
    attention.to("cuda")
    given = images.to("cuda").contiguous(memory_format=torch.channels_last)
    with torch.inference_mode(), device.counted() as counts:
        found = attention(net(given).mT)
    assert counts.kernels["aten.convolution"] == 1
    assert (counts.copies, counts.waits) == (0, {})
    torch.testing.assert_close(found.cpu(), expected)


def test_only_one_at_a_time_and_gone_when_the_block_ends(device, x):
    with pytest.raises(RuntimeError, match="one simulated device at a time"), SimulatedDevice():
        pass
    device.__exit__(None, None, None)
    with pytest.raises(RuntimeError, match=r"aten\.add\.Tensor: the simulated device is gone"):
        x + 1
    device.__enter__()
    assert (x + 1).sum().item() == 21
