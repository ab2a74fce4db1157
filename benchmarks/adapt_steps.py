"""Updates of ``extract adapt --stage hubert`` against the bare step: forward, backward, clip, AdamW, nothing else.

The loop reads sound from the disk, scales and masks it, follows the rates, adds up what it logs. All of that should
hide behind the device.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from extract.adapt.folder import Folder
from extract.adapt.hubert_batches import ReadyUpdate, Recordings, ahead
from extract.adapt.hubert_config import HEAD_SIZES, HubertAdaptConfig
from extract.adapt.hubert_crops import HZ, updates
from extract.adapt.hubert_network import HubertPretraining, PretrainingHead, load_encoder, new_mask_vector
from extract.adapt.hubert_sound import SOUND, Heard, Recording
from extract.adapt.hubert_training import SUMS, autocast, loss_config, make_optimizer, train_step
from extract.adapt.processes import Processes
from extract.models import hubert
from extract.stages.hubert import Hubert, HubertConfig
from extract.weights.resolving import resolve


@dataclass(frozen=True)
class AdaptSteps:
    """Seconds per update."""

    bare_s: float
    loop_s: float
    sound_s: float
    """Seconds of sound per second, of the loop."""

    @property
    def ratio(self) -> float:
        """1: the loop costs nothing."""
        return self.bare_s / self.loop_s


def measure(
    folder: Path, architecture: str, device: torch.device, *, number: int = 12, config: HubertAdaptConfig | None = None
) -> AdaptSteps:
    """Time ``number`` updates each way, the same crops and masks, after two to warm up.

    Args:
        folder: an empty one; the drawn sound is put there.
    """
    config = config or HubertAdaptConfig(steps=4 * number, head_steps=0, warmup_steps=1)
    data = _noise(folder, config, number)
    processes = Processes(0, 1, device)
    network = _network(architecture, config, device)
    optimizer = make_optimizer(network, config)
    sums = torch.zeros(len(SUMS), dtype=torch.float64, device=device)

    began, heard = time.perf_counter(), 0.0
    for done, ready in enumerate(ahead(updates(data.lengths, config), data, config, processes)):
        if done == 2:
            _wait(device)
            began = time.perf_counter()
        if done == number + 2:
            break
        train_step(network, optimizer, ready, config, processes, sums)
        heard += ready.seconds if done >= 2 else 0.0
    _wait(device)
    looped = time.perf_counter() - began

    stream = ahead(updates(data.lengths, config), data, config, processes)
    held = [ready for ready, _ in zip(stream, range(number + 2), strict=False)]
    stream.close()
    for ready in held[:2]:
        bare_step(network, optimizer, ready, config, device)
    _wait(device)
    began = time.perf_counter()
    for ready in held[2:]:
        bare_step(network, optimizer, ready, config, device)
    _wait(device)
    bare = time.perf_counter() - began
    return AdaptSteps(bare / number, looped / number, heard / looped)


def bare_step(
    network: HubertPretraining,
    optimizer: torch.optim.Optimizer,
    ready: ReadyUpdate,
    config: HubertAdaptConfig,
    device: torch.device,
) -> None:
    """What any loop must do: nothing is logged, no rate follows a plan, sound and masks are there already."""
    optimizer.zero_grad(set_to_none=True)
    for batch in ready.batches:
        here = batch.to(device)
        with autocast(config, device):
            loss = network(here.wave, [here.clusters], here.mask, loss_config(config))
        (loss.total / ready.sample_size).backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), config.clip)
    optimizer.step()


def _network(architecture: str, config: HubertAdaptConfig, device: torch.device) -> HubertPretraining:
    stage = Hubert(HubertConfig.model_validate({"weights": "random", "architecture": architecture}))
    encoder, _ = load_encoder(architecture, resolve("random", stage), device)
    width = hubert.ARCHITECTURES[architecture].width
    head = PretrainingHead(width, HEAD_SIZES[architecture], [config.targets.clusters])
    head.draw(0)
    return HubertPretraining(encoder, new_mask_vector(width, 0), head).to(device).train()


def _noise(folder: Path, config: HubertAdaptConfig, number: int) -> Recordings:
    """Drawn sound for so many updates, in recordings of a minute; clusters by chance."""
    random, made = np.random.default_rng(0), Folder(folder)
    minutes = max(1, round(config.batch_s * (number + 2) / 60 / 2))
    found: list[Recording] = []
    for minute in range(minutes):
        samples = random.normal(0, 0.1, 60 * HZ).astype(np.float32)
        made.write_by(f"{SOUND}/{minute}.f32", lambda file, samples=samples: _put(file, samples))  # type: ignore[misc]
        heard = Heard(str(minute), "train", str(minute), {}, len(samples), 0.0, 0.01)
        found.append(Recording(made, heard, normalise=True))
    labels = [random.integers(config.targets.clusters, size=one.heard.steps).astype(np.int16) for one in found]
    return Recordings(found, labels, 50)


def _put(file: BinaryIO, samples: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]") -> None:
    file.write(samples.tobytes())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def lines(found: AdaptSteps) -> Sequence[str]:
    """What a benchmark prints of it."""
    return (
        f"adapt steps against the bare step: {found.ratio:.2f} (at least 0.9)",
        f"{found.sound_s:,.0f} seconds of sound per second",
    )
