"""Updates of ``extract adapt --stage hubert`` against the bare step: forward, backward, clip, AdamW, nothing else.

The loop reads sound from the disk, scales and masks it, follows the rates, adds up what it logs. All of that should
hide behind the device.
"""

import itertools
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


class AdaptSteps:
    """Updates of one network, by the loop and bare.

    Args:
        folder: an empty one; the drawn sound is put there.
        number: updates of one call of ``loop`` or ``bare``: the same ones, again and again.
    """

    def __init__(
        self, folder: Path, architecture: str, device: torch.device, config: HubertAdaptConfig, number: int
    ) -> None:
        self._config = config.model_copy(update={"steps": number, "head_steps": 0, "warmup_steps": 1})
        self._data = _noise(folder, config, number)
        self._architecture, self._device, self._number = architecture, device, number
        self._processes = Processes(0, 1, device)
        self._network = _network(architecture, config, device)
        self._optimizer = make_optimizer(self._network, self._config)
        self._sums = torch.zeros(len(SUMS), dtype=torch.float64, device=device)
        planned = list(itertools.islice(updates(self._data.lengths, self._config), number))
        self._held = list(ahead(planned, self._data, self._config, self._processes))
        self._stream = ahead(itertools.cycle(planned), self._data, self._config, self._processes)

    @property
    def sound_s(self) -> float:
        """Seconds of sound of the held updates."""
        return sum(ready.seconds for ready in self._held)

    def loop(self) -> None:
        """The updates as a run makes them, sound read and masked by its thread."""
        for ready in itertools.islice(self._stream, self._number):
            train_step(self._network, self._optimizer, ready, self._config, self._processes, self._sums)

    def bare(self) -> None:
        """As many on sound and masks that lie ready."""
        for ready in self._held:
            bare_step(self._network, self._optimizer, ready, self._config, self._device)

    def gradients_apart(self) -> float:
        """Largest difference of the clipped gradients that either way gives of the first update."""
        first, config = self._held[0], self._config
        ours, bare = (_network(self._architecture, config, self._device) for _ in range(2))
        train_step(ours, make_optimizer(ours, config), first, config, self._processes, self._sums.clone())
        bare_step(bare, make_optimizer(bare, config), first, config, self._device)
        one, other = (
            torch.cat([weight.grad.flatten() for weight in network.parameters() if weight.grad is not None])
            for network in (ours, bare)
        )
        return float((one - other).abs().max())

    def close(self) -> None:
        """End the thread that reads ahead."""
        self._stream.close()


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
