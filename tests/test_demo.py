"""The drawn clips: what was asked for can be measured in them, by other means than drew it."""

import csv
import io
import re
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

import extract
from extract.au import AUS
from extract.cli import app
from extract.config import load_extract_config
from extract.demo import clips, make
from extract.demo.clips import FPS, NUM_FRAMES, SPLITS, Drawing, Studio, demo_clips
from extract.demo.mesh import Pose, unit_displacements
from extract.demo.portrait import AXIS_X, AXIS_Y, PUPIL_DISTANCE_PX
from extract.demo.schedule import DRIVERS, LABEL_ABOVE, RATE_LEAST, RATE_MOST, draw_schedules
from extract.demo.sound import SOUND_HZ, load_words, speak
from extract.demo.units import DISPLACEMENTS, MIDLINE, MIRROR
from extract.inputs.datasets.folder import scan_folder
from extract.inputs.manifest import Clip, load_manifest, write_manifest
from extract.inputs.media import DRAWN
from extract.running.selection import Options
from fusion.config import load_fusion_config

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def studio():
    return Studio(7)


@pytest.fixture(scope="module")
def drawings(studio):
    return list(studio.drawings())


def test_the_committed_manifest_is_the_generators(tmp_path):
    """``data_manifest.yaml`` describes exactly the clips that ``extract demo`` draws."""
    path = tmp_path / "data_manifest.yaml"
    write_manifest(path, demo_clips(tmp_path / "demo" / "clips"), make.COMMENT)
    assert path.read_text() == (ROOT / "data_manifest.yaml").read_text()


def test_nobody_is_in_two_splits():
    numbers = [number for split in SPLITS.values() for number in split]
    assert len(numbers) == len(set(numbers)) == 12
    listed = demo_clips(Path("/x"))
    for subject in {clip.subject for clip in listed}:
        assert len({clip.split for clip in listed if clip.subject == subject}) == 1


def test_every_unit_is_often_on_and_off_in_every_split(drawings):
    for split in SPLITS:
        rates = np.concatenate([d.schedule.labels for d in drawings if d.split == split]).mean(axis=0)
        assert rates.min() >= RATE_LEAST
        assert rates.max() <= RATE_MOST


def test_labels_are_the_activations_above_the_threshold(drawings):
    for drawing in drawings:
        activations = drawing.schedule.activations
        assert activations.shape == (NUM_FRAMES, 12)
        assert ((activations >= 0) & (activations <= 1)).all()
        assert np.array_equal(drawing.schedule.labels, activations > LABEL_ABOVE)
        a = dict(zip(AUS, activations.T, strict=True))
        assert (a[25] >= 0.9 * a[26] - 1e-12).all(), "a dropped jaw parts the lips"
        assert (np.diff(activations, axis=0).__abs__().max()) < 0.5, "faces do not jump"


def test_drivers_are_on_as_often_as_they_say():
    """Over 200 clips: smile alone moves the lip corners, so AU12 is on for about its share."""
    pts_s = np.arange(NUM_FRAMES) / FPS
    drawn = draw_schedules(200, pts_s, np.random.default_rng(0))
    on = np.concatenate([schedule.activations[:, AUS.index(12)] > 0 for schedule in drawn]).mean()
    assert on == pytest.approx(DRIVERS["smile"].share, abs=0.12)


def test_another_seed_is_another_cast_and_the_same_seed_the_same(studio, drawings):
    again = next(Studio(7).drawings({"S03_2"}))
    first = next(drawing for drawing in drawings if drawing.id == "S03_2")
    assert np.array_equal(again.schedule.activations, first.schedule.activations)
    assert np.array_equal(again.sound, first.sound)
    one, two = (next(studio.frames(drawing)) for drawing in (first, again))
    assert np.array_equal(one, two)
    other = next(Studio(8).drawings({"S03_2"}))
    assert not np.array_equal(other.schedule.activations, first.schedule.activations)
    assert not np.array_equal(other.subject.neutral, first.subject.neutral)


def test_displacements_are_mirrored():
    """In the head's own axes: as far out on both sides, as far down."""
    for unit in DISPLACEMENTS:
        moves = unit_displacements(unit)
        for name, (out, down) in DISPLACEMENTS[unit].items():
            across = 0 if name in MIDLINE else -out
            found = moves[name] @ AXIS_X, moves[name] @ AXIS_Y
            assert found == pytest.approx((PUPIL_DISTANCE_PX * across, PUPIL_DISTANCE_PX * down), abs=1e-2)
            if name in MIRROR:
                twin = moves[MIRROR[name]] @ AXIS_X, moves[MIRROR[name]] @ AXIS_Y
                assert twin == pytest.approx((PUPIL_DISTANCE_PX * out, PUPIL_DISTANCE_PX * down), abs=1e-2)


def test_the_mesh_hardly_ever_folds(studio, drawings):
    shares = [
        studio.mesh.flipped(studio.places(drawing.subject, activations))
        for drawing in drawings[::3]
        for activations in drawing.schedule.activations[::10]
    ]
    assert np.mean(shares) < 0.001
    assert max(shares) < 0.03


def test_lips_and_lids_never_cross(studio, drawings):
    for drawing in drawings[::5]:
        for activations in drawing.schedule.activations[::8]:
            places = studio.places(drawing.subject, activations)
            for upper, lower, least in (("62", "66", 0.35), ("37", "41", 0.035 * PUPIL_DISTANCE_PX)):
                above, below = studio.mesh.named(places, upper, lower)
                assert (below - above) @ AXIS_Y >= least - 1e-6


def measured(studio, drawing, unit, tmp_path):
    """Landmarks [T, 68, 2] by dlib, through the commands' own stages, of a movie that goes from rest to one unit."""
    levels = np.repeat([0.0, 1.0], 6)
    activations = np.zeros((12, 12))
    activations[:, AUS.index(unit)] = levels
    activations[:, AUS.index(25)] = np.maximum(activations[:, AUS.index(25)], 0.9 * (unit == 26) * levels)
    calm = replace(drawing.recording, turn_deg=0.0, drift_deg=0.0, resolution=1.0, noise=1.0)
    still = replace(drawing, recording=calm, schedule=replace(drawing.schedule, activations=activations))
    path = tmp_path / f"{unit}.mp4"
    path.write_bytes(clips.movie(studio.frames(still), drawing.sound[: SOUND_HZ // 2], 7))
    extract.run([Clip(id=f"u{unit}", video=path)], tmp_path / "s.zarr", load_extract_config("demo"), options=FACES)
    marks, valid = extract.open_store(tmp_path / "s.zarr").read(f"u{unit}", "faces", "landmarks")
    assert valid is not None
    assert valid.all(), "a face in every frame"
    return marks


FACES = Options(stages=("faces",))


@pytest.mark.parametrize(
    ("unit", "measure", "sign"),
    [
        (12, lambda m: np.linalg.norm(m[:, 54] - m[:, 48], axis=1), 1),  # the mouth grows wide
        (26, lambda m: m[:, 66, 1] - m[:, 62, 1], 1),  # it opens
        (2, lambda m: m[:, 36:48, 1].mean(axis=1) - m[:, [18, 25], 1].mean(axis=1), 1),  # outer brows rise
        (4, lambda m: m[:, 36:48, 1].mean(axis=1) - m[:, 20:24, 1].mean(axis=1), -1),  # inner brows fall
        (7, lambda m: (m[:, [40, 41, 46, 47], 1] - m[:, [38, 37, 44, 43], 1]).mean(axis=1), -1),  # lids close
    ],
)
def test_a_landmark_detector_sees_what_was_drawn(studio, drawings, tmp_path, unit, measure, sign):
    marks = measured(studio, drawings[0], unit, tmp_path)
    pupils = np.linalg.norm(marks[:, 42:48].mean(axis=1) - marks[:, 36:42].mean(axis=1), axis=1)
    share = measure(marks) / pupils
    assert sign * (np.median(share[6:]) - np.median(share[:6])) > 0.02


def test_words_are_heard_where_the_transcript_says(drawings):
    """Energy inside the words is far above that between them; most words lie in the bursts of speech."""
    inside: list[bool] = []
    for drawing in drawings:
        said = np.zeros(len(drawing.sound), dtype=bool)
        for word in drawing.words:
            said[round(word.start_s * SOUND_HZ) : round(word.end_s * SOUND_HZ)] = True
        if said.any():
            assert np.mean(drawing.sound[said] ** 2) > 30 * np.mean(drawing.sound[~said] ** 2)
        assert all(0 <= word.start_s < word.end_s <= NUM_FRAMES / FPS for word in drawing.words)
        inside += [
            any(burst.start_s - 1e-6 <= word.start_s <= burst.end_s for burst in drawing.schedule.bursts)
            for word in drawing.words
        ]
    assert len(inside) > 100
    assert 0.8 <= sum(inside) / len(inside) < 1.0


def test_words_go_with_the_jaw(drawings):
    """A burst in which it drops takes words with an open vowel, another one the others."""
    opens = {word.text: word.opens for voice in load_words().values() for word in voice}
    assert sorted(opens.values()).count(True) == 12
    for drawing in drawings:
        bursts = sorted(drawing.schedule.bursts, key=lambda burst: burst.start_s)
        for burst in bursts:
            alone = [b for b in bursts if b is not burst and b.start_s < burst.end_s and b.end_s > burst.start_s]
            if not alone:
                within = [w for w in drawing.words if burst.start_s <= w.start_s and w.end_s <= burst.end_s]
                assert {opens[word.text] for word in within} <= {burst.jaw}


def test_silence_is_almost_silent():
    words = load_words()["slt"]
    sound, said = speak(words, [], 3.0, np.random.default_rng(1))
    assert len(sound) == 3 * SOUND_HZ
    assert len(said) <= 3
    quiet, none = speak(words, [], 0.5, np.random.default_rng(1))
    assert none == []
    assert np.abs(quiet).max() < 0.02


def test_the_words_are_as_their_table_says():
    """Another decoder's count of samples, and the voices of the recipe."""
    folder = ROOT / "extract" / "demo_words"
    rows = list(csv.DictReader(io.StringIO((folder / "words.csv").read_text())))
    assert len(rows) == 72
    assert {row["voice"] for row in rows} == {"slt", "rms", "awb"}
    for row in rows[::7]:
        with av.open(folder / row["file"]) as container:
            (stream,) = container.streams.audio
            assert (stream.rate, stream.channels) == (16_000, 1)
            samples = sum(frame.samples for frame in container.decode(audio=0))
        assert samples / 16_000 == pytest.approx(float(row["duration_s"]), abs=1e-4)
    assert "Carnegie Mellon University" in (folder / "NOTICE").read_text()
    assert sum(path.stat().st_size for path in folder.iterdir()) < 700_000


def test_a_pose_moves_the_whole_picture(studio, drawings):
    """A shift of two pixels is a shift by two pixels (of the frame: four of the drawing)."""
    mesh, subject = studio.mesh, drawings[0].subject
    places = studio.places(subject, np.zeros(12))
    still = mesh.picture(subject.texture, places, Pose(0, 1, (0, 0))).astype(int)
    moved = mesh.picture(subject.texture, places, Pose(0, 1, (2, 0))).astype(int)
    inner = (slice(60, 450), slice(60, 440))
    assert np.abs(moved[:, 4:][inner] - still[:, :-4][inner]).mean() < 1.0
    assert np.abs(moved[inner] - still[inner]).mean() > 2.0


def tiny(drawing: Drawing) -> Drawing:
    activations = drawing.schedule.activations[:3]
    return replace(drawing, schedule=replace(drawing.schedule, activations=activations), sound=drawing.sound[:4000])


@pytest.fixture
def quick(monkeypatch):
    """Two clips of three frames, drawn in this process."""
    monkeypatch.setattr(clips, "SPLITS", {"train": (0,), "test": (1,)})
    monkeypatch.setattr(clips, "CLIPS_EACH", 1)
    monkeypatch.setattr(clips, "draw_schedules", lambda n, pts_s, _: [clips_schedule(pts_s)] * n)
    whole = Studio.drawings
    monkeypatch.setattr(Studio, "drawings", lambda self, only=None: (tiny(d) for d in whole(self, only)))

    class Here:
        """A pool without processes."""

        def __init__(self, *_, **__): ...
        def __enter__(self):
            return self

        def __exit__(self, *_): ...
        def submit(self, call, *arguments):
            return Done(call(*arguments))

    class Done:
        def __init__(self, value):
            self.value = value

        def done(self):
            return True

        def result(self):
            return self.value

    monkeypatch.setattr(clips, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(clips, "wait", lambda *_, **__: None)


def clips_schedule(pts_s):
    from extract.demo.schedule import draw_schedule

    return draw_schedule(pts_s, np.random.default_rng(0))


@pytest.mark.usefixtures("quick")
def test_the_command_draws_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["demo"])
    assert result.exit_code == 0, result.output
    assert "demo/clips: 2 clips drawn, 0 were there; data_manifest.yaml describes them" in result.stdout
    assert "next: extract run -c demo --manifest data_manifest.yaml --store demo/store.zarr" in result.stdout
    assert sorted(path.name for path in (tmp_path / "demo/clips").iterdir()) == [
        *("S00_1.au.csv", "S00_1.mp4", "S00_1.words.csv", "S01_1.au.csv", "S01_1.mp4", "S01_1.words.csv")
    ]
    listed = load_manifest(tmp_path / "data_manifest.yaml")
    assert [clip.video for clip in listed] == [tmp_path / "demo/clips/S00_1.mp4", tmp_path / "demo/clips/S01_1.mp4"]
    before = (tmp_path / "demo/clips/S01_1.mp4").read_bytes()
    (tmp_path / "demo/clips/S01_1.mp4").unlink()
    again = CliRunner().invoke(app, ["demo"])
    assert "1 clips drawn, 1 were there" in again.stdout
    assert (tmp_path / "demo/clips/S01_1.mp4").read_bytes() == before
    assert "0 clips drawn, 2 were there" in CliRunner().invoke(app, ["demo"]).stdout
    with av.open(tmp_path / "demo/clips/S00_1.mp4") as container:
        assert container.metadata["comment"] == f"{DRAWN}: extract demo --seed 0"
        assert sum(1 for _ in container.decode(video=0)) == 3


@pytest.mark.usefixtures("quick")
def test_other_seeds_and_folders_have_their_own_manifest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(app, ["demo", "--seed", "4", "-q"]).exit_code == 0
    assert (tmp_path / "demo/seed_4/manifest.yaml").is_file()
    assert CliRunner().invoke(app, ["demo", "-o", "elsewhere", "-q"]).exit_code == 0
    assert (tmp_path / "elsewhere/clips/S00_1.mp4").is_file()
    assert not (tmp_path / "data_manifest.yaml").exists()


def test_a_missing_demo_clip_names_the_command(tmp_path):
    clip = Clip(id="a", video=tmp_path / "demo" / "clips" / "a.mp4")
    report = extract.run([clip], tmp_path / "s.zarr", load_extract_config("demo"), options=FACES)
    assert "no such file; `extract demo` draws the demo's clips" in report.failures[0].message


def test_drawing_without_its_packages_says_what_to_install(monkeypatch):
    import sys

    for name in [name for name in sys.modules if name.startswith("extract.demo")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cv2", None)
    result = CliRunner().invoke(app, ["demo"])
    assert result.exit_code == 3
    assert re.search(r"drawing needs cv2: pip install 'au-fusion\[demo\]'", result.stderr)


def test_the_demo_config_fits_the_demo():
    """Its modalities read what its instances give, and no weights file is asked for."""
    extraction, fusing = load_extract_config("demo"), load_fusion_config("demo")
    assert set(fusing.instances) <= set(extraction.instances)
    specs = [entry.stage_fields.get("weights") for entry in extraction.instances.values() if entry]
    assert set(specs) == {None, "random", "lanczos"}


def test_the_clips_folder_is_a_folder_like_any_other(tmp_path):
    """``extract manifest folder`` finds the movies; label and word tables have names of their own."""
    for name in ("S00_1.mp4", "S00_1.au.csv", "S00_1.words.csv"):
        (tmp_path / name).touch()
    assert [clip.id for clip in scan_folder(tmp_path).clips] == ["S00_1"]


def test_frames_are_what_an_encoder_can_take(studio, drawings):
    frame = next(studio.frames(drawings[5]))
    assert (frame.shape, frame.dtype) == ((256, 256, 3), np.uint8)
    assert cv2.Laplacian(frame, cv2.CV_64F).var() > 5, "not a blank"
