"""Voice activity by energy, and cutting at pauses: properties over drawn recordings, real speech, closed forms."""

import numpy as np
import pytest
import torch

from extract.inputs import media
from extract.recognition.pieces import Piece, cut
from extract.recognition.speech_activity import HOPS_PER_S, QUIETEST_DB, levels_db, voiced

HZ = 16_000
HOP = HZ // HOPS_PER_S


def sound(*parts):
    return torch.from_numpy(np.concatenate(parts).astype(np.float32))


def noise(seconds, scale, seed=0):
    return np.random.default_rng(seed).normal(0, scale, round(seconds * HZ))


def buzz(seconds, amplitude=0.3, hz=150):
    return amplitude * np.sign(np.sin(2 * np.pi * hz * np.arange(round(seconds * HZ)) / HZ))


def drawn(seed):
    """Bursts and pauses of drawn lengths over a drawn floor."""
    random = np.random.default_rng(seed)
    floor = 10 ** random.uniform(-4.5, -2.5)
    parts = []
    for _ in range(random.integers(1, 30)):
        parts += [buzz(random.exponential(2), 10 ** random.uniform(-1, -0.3), random.uniform(90, 300))]
        parts += [np.zeros(round(random.exponential(1) * HZ))]
    whole = np.concatenate(parts)
    return sound(whole + random.normal(0, floor, len(whole)))


@pytest.mark.parametrize("max_s", [0.5, 7.0, 30.0])
@pytest.mark.parametrize("seed", range(12))
def test_every_voiced_sample_lies_in_exactly_one_piece(seed, max_s):
    samples = drawn(seed)
    found = cut(samples, HZ, max_s)
    assert found == sorted(found, key=lambda piece: piece.start)
    covered = np.zeros(len(samples), dtype=int)
    for piece in found:
        assert 0 <= piece.start < piece.stop <= len(samples)
        assert len(piece) <= max_s * HZ
        covered[piece.start : piece.stop] += 1
    assert covered.max(initial=0) <= 1
    speech = np.repeat(voiced(levels_db(samples, HZ)), HOP)[: len(samples)]
    assert covered[speech].min(initial=1) == 1


@pytest.mark.parametrize("seed", range(12))
def test_without_the_gate_pieces_tile_the_recording(seed):
    samples = drawn(seed)
    found = cut(samples, HZ, 5.0, gate=False)
    assert [piece.start for piece in found] == [0, *(piece.stop for piece in found[:-1])]
    assert found[-1].stop == len(samples)


def test_a_long_stretch_is_cut_in_its_pauses():
    """Sentences of 8 s with 0.4 s between them: 15 s at least stay together, and every cut is in a pause."""
    parts = [part for _ in range(12) for part in (buzz(8), noise(0.4, 1e-4))]
    found = cut(sound(*parts), HZ, 30.0)
    assert all(len(piece) > 15 * HZ for piece in found[:-1])
    for piece in found[:-1]:
        assert piece.stop / HZ % 8.4 == pytest.approx(8.2, abs=0.2)


def test_a_short_pause_stays_and_a_long_one_goes():
    join = cut(sound(noise(2, 1e-4), buzz(1), noise(0.8, 1e-4), buzz(1), noise(2, 1e-4)), HZ, 30.0)
    apart = cut(sound(noise(2, 1e-4), buzz(1), noise(1.4, 1e-4), buzz(1), noise(2, 1e-4)), HZ, 30.0)
    assert [(p.start / HZ, p.stop / HZ) for p in join] == [pytest.approx((1.8, 5.0), abs=0.06)]
    assert [(p.start / HZ, p.stop / HZ) for p in apart] == [
        pytest.approx((1.8, 3.2), abs=0.06),
        pytest.approx((4.2, 5.6), abs=0.06),
    ]


NOTHING_IS_SAID = {
    "digital silence": np.zeros(60 * HZ),
    "an empty room": noise(60, 3e-4),
    "steady noise": noise(60, 0.05),
    "loud steady noise": noise(60, 0.3),
    "a steady tone": 0.5 * np.sin(2 * np.pi * 440 * np.arange(60 * HZ) / HZ),
    "mains hum": 0.3 * np.sin(2 * np.pi * 50 * np.arange(60 * HZ) / HZ),
    "clicks": np.where(np.arange(60 * HZ) % HZ == 0, 0.9, 0.0),
    "one sample": np.ones(1),
    "no sample": np.ones(0),
}


@pytest.mark.parametrize("name", NOTHING_IS_SAID)
def test_what_is_no_speech_by_its_energy(name):
    assert cut(sound(NOTHING_IS_SAID[name]), HZ, 30.0) == []


@pytest.mark.parametrize("snr_db", [10, 20])
def test_speech_over_steady_noise_is_found(media_dir, snr_db):
    """Real speech between 20 s of noise: nearly all that is loud in the clean recording, little of the noise."""
    clean = media.read_audio(media_dir / "librispeech_6313-76958-0021.flac").samples
    loud = np.repeat(levels_db(torch.from_numpy(clean), HZ) > -35, HOP)[: len(clean)]
    scale = np.sqrt((clean[loud] ** 2).mean()) * 10 ** (-snr_db / 20)
    around = noise(20, scale, seed=1)
    samples = sound(around, clean + noise(len(clean) / HZ, scale, seed=2)[: len(clean)], around)
    covered = np.zeros(len(samples), dtype=bool)
    for piece in cut(samples, HZ, 30.0):
        covered[piece.start : piece.stop] = True
    inside = slice(len(around), len(around) + len(clean))
    assert covered[inside][loud].mean() > 0.99
    assert covered.sum() - covered[inside].sum() < 0.5 * HZ


def test_real_speech_passes_whole(media_dir):
    """Eleven seconds of a speech with pauses below a second: one piece, from edge to edge."""
    samples = torch.from_numpy(media.read_audio(media_dir / "jfk.flac").samples)
    assert cut(samples, HZ, 30.0) == [Piece(0, len(samples))]


def test_levels_are_mean_squares():
    """Closed form: a sine of amplitude a has a^2 / 2; silence has the lowest level there is."""
    time = np.arange(2 * HZ) / HZ
    levels = levels_db(sound(0.5 * np.sin(2 * np.pi * 1000 * time)), HZ)
    assert levels[50:150] == pytest.approx(10 * np.log10(0.125), abs=0.01)
    assert (levels_db(torch.zeros(HZ), HZ) == QUIETEST_DB).all()


class OnDisk:
    """Samples that are read slice by slice, as of a long recording."""

    def __init__(self, samples):
        self.samples, self.read = samples, []

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, part):
        self.read.append(part)
        return self.samples[part]


def test_a_long_recording_is_read_in_chunks_with_the_same_levels(monkeypatch):
    samples = sound(*(part for seed in range(40) for part in (buzz(1.7), noise(1.33, 1e-3, seed))))
    on_disk = OnDisk(samples)
    levels = levels_db(on_disk, HZ)
    assert max(part.stop - part.start for part in on_disk.read) == 60 * HZ < len(samples)
    monkeypatch.setattr("extract.recognition.speech_activity.CHUNK_S", 10_000)
    assert np.array_equal(levels, levels_db(samples, HZ))
    assert cut(on_disk, HZ, 10.0) == cut(samples, HZ, 10.0)


@pytest.mark.parametrize(("hz", "max_s"), [(11_025, 30.0), (16_000, 0.01)])
def test_what_cannot_be_cut_is_refused(hz, max_s):
    with pytest.raises(ValueError, match=f"hz is {hz} and max_s {max_s}"):
        cut(torch.zeros(HZ), hz, max_s)
