"""From the frame to the GH-Feat code, as a person runs it: in memory, resumable, looked at with ``extract inspect``."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import extract
from extract import inspection, verification
from extract.cli import app
from extract.config import ExtractConfig
from extract.errors import UsageError
from extract.inputs import media
from extract.inputs.manifest import Clip, write_manifest
from extract.inspection import GAP_PX, TILE_PX, Look, caption, draw
from extract.running.selection import Options
from extract.stages.superres import Superres
from tests.media_files import greys, write_clip
from tests.test_crops import draw_crops

INSTANCES = {
    "superres": {"weights": "lanczos", "outscale": 2},
    "landmarks": {},
    "align": {"output_size": 64, "transform_size": 256},
    "ghfeat": {"weights": "random", "architecture": "small"},
}
CONFIG = ExtractConfig(instances=INSTANCES)
TRANSIENT = ("superres", "align")


def faces(media_dir, num_frames, width=320):
    """Frames of a real face, 90 pixels large, there and back as long as asked."""
    with media.open_video(media_dir / "one_face.mp4") as video:
        read = [frame.image for frame, _ in zip(video.frames(), range(24), strict=False)]
    height = width * read[0].shape[0] // read[0].shape[1] // 2 * 2
    small = [np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BOX)) for image in read]
    there_and_back = small + small[-2:0:-1]
    return [there_and_back[i % len(there_and_back)] for i in range(num_frames)]


@pytest.fixture(scope="module")
def clip(media_dir, tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "face.mkv"
    write_clip(path, faces(media_dir, 20))
    return Clip(id="face", video=path)


@pytest.fixture(scope="module")
def done(clip, tmp_path_factory):
    """The store of one whole run, and the folder it lies in."""
    folder = tmp_path_factory.mktemp("done")
    report = extract.run([clip], folder / "s.zarr", CONFIG, options=Options(stages=("ghfeat",)))
    assert report.exit_code == 0, report.failures
    return extract.open_store(folder / "s.zarr"), folder


def values(store, clip="face"):
    code = store.read(clip, "ghfeat", "code")
    return code.values, code.valid


def test_the_store_is_valid_and_holds_every_frame(done):
    store, _ = done
    code, valid = values(store)
    assert code.shape == (20, 624)
    assert code.dtype == np.float16
    assert valid.all()
    assert len(np.unique(code, axis=0)) == 20
    assert np.isfinite(code.astype(float)).all()
    assert store.record("face", "ghfeat").provenance["untrained"]
    assert not verification.check(store).damage


def test_pictures_flow_through_memory_only(done):
    """No image file anywhere, and what is transient has no record."""
    store, folder = done
    files = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert files == {".json", *(path.suffix for path in folder.rglob("c.*"))}
    names = {path.name for path in folder.rglob("*") if path.is_file() and not path.name.startswith("c.")}
    assert names == {"zarr.json", "config.json"}
    assert not set(TRANSIENT) & set(store.files.folders("face"))
    assert {path.name for path in (folder / "s.zarr" / "face" / "crop").iterdir() if path.is_dir()} == {
        "point",
        "valid",
    }


def test_the_recipe_names_the_whole_chain(done):
    recipe = done[0].record("face", "ghfeat").recipe
    aligned = recipe["inputs"]["align"]
    assert aligned["config"] == {"output_size": 64, "transform_size": 256, "method": "torch"}
    enlarged = aligned["inputs"]["superres"]
    assert enlarged["config"]["weights"] == "lanczos"
    assert set(enlarged["inputs"]) == {"crop"}
    assert aligned["inputs"]["landmarks"]["inputs"]["superres"] == enlarged


def test_in_two_steps_the_bytes_are_the_same(done, clip, tmp_path):
    for stage in ("landmarks", "ghfeat"):
        assert extract.run([clip], tmp_path / "s.zarr", CONFIG, options=Options(stages=(stage,))).exit_code == 0
    for path in (done[1] / "s.zarr").rglob("c.*"):
        assert (tmp_path / path.relative_to(done[1])).read_bytes() == path.read_bytes(), path


def test_a_run_that_was_cut_goes_on_to_the_same_bytes(done, clip, tmp_path, monkeypatch):
    """Blocks of 8 rows; the second run enlarges only what the missing blocks need."""
    small = ExtractConfig(instances={**INSTANCES, "ghfeat": {**INSTANCES["ghfeat"], "block_rows": 8}})
    options = Options(stages=("ghfeat",))
    assert extract.run([clip], tmp_path / "whole.zarr", small, options=options).exit_code == 0
    shutil.copytree(tmp_path / "whole.zarr", tmp_path / "cut.zarr")
    folder = tmp_path / "cut.zarr" / "face" / "ghfeat"
    (folder / "code" / "c.1.0").unlink()
    record = json.loads((folder / "zarr.json").read_text())
    record["attributes"]["state"] = "partial"
    (folder / "zarr.json").write_text(json.dumps(record))
    enlarged = []
    compute = Superres.compute
    monkeypatch.setattr(
        Superres, "compute", lambda self, batch: enlarged.append(len(batch["crop.patch"])) or compute(self, batch)
    )
    assert extract.run([clip], tmp_path / "cut.zarr", small, options=options).exit_code == 0
    assert enlarged == [8]  # rows 8 to 15
    for path in (tmp_path / "whole.zarr").rglob("c.*"):
        assert (tmp_path / "cut.zarr" / path.relative_to(tmp_path / "whole.zarr")).read_bytes() == path.read_bytes()
    # In micro-batches of another size the last digit may differ.
    assert np.allclose(values(extract.open_store(tmp_path / "cut.zarr"))[0], values(done[0])[0], rtol=2e-3, atol=2e-3)


def test_given_crops_are_enlarged_as_they_are(tmp_path, monkeypatch):
    """As in the paper; nothing upstream runs, and the recipe is that of a movie's."""
    from extract.stages.detections import Detections

    monkeypatch.setattr(Detections, "compute", lambda *_: pytest.fail("detections ran"))
    folder = draw_crops(tmp_path / "crops", [1, 2, 4])
    grey = Image.open(folder / "00001.png").convert("L")
    grey.save(folder / "00001.png")
    Image.open(folder / "00002.png").convert("RGBA").save(folder / "00002.png")
    given = Clip(id="given", crops=folder, fps=25)
    report = extract.run([given], tmp_path / "s.zarr", CONFIG, options=Options(stages=("ghfeat",)))
    assert report.exit_code == 0, report.failures
    store = extract.open_store(tmp_path / "s.zarr")
    code, valid = values(store, "given")
    assert valid.tolist() == [True, True, False, True]
    assert not code[2].any()
    assert set(store.files.folders("given")) == {"frames", "crop", "landmarks", "ghfeat"}
    point = store.read("given", "landmarks", "point").values
    assert point[valid].min() > 0  # within the usual box of a crop of 112, enlarged to 224
    assert point[valid].max() < 240


def test_sixteen_bits_of_grey_are_not_cut(tmp_path):
    folder = tmp_path / "crops"
    folder.mkdir()
    levels = np.random.default_rng(0).integers(0, 65536, (112, 112)).astype(np.uint16)
    Image.fromarray(levels).save(folder / "00001.png")
    from extract.inputs.crops import read_crop

    found = read_crop(folder / "00001.png")
    assert found is not None
    assert np.array_equal(found, np.repeat((levels >> 8).astype(np.uint8)[:, :, None], 3, axis=2))


def test_a_clip_without_a_face_and_one_that_is_broken(clip, tmp_path):
    """Transient stages in between hide neither reason; the good clip is done all the same."""
    write_clip(tmp_path / "grey.mkv", greys(5))
    (tmp_path / "torn.mp4").write_bytes(b"no movie")
    clips = [clip, Clip(id="grey", video=tmp_path / "grey.mkv"), Clip(id="torn", video=tmp_path / "torn.mp4")]
    report = extract.run(clips, tmp_path / "s.zarr", CONFIG, options=Options(stages=("ghfeat",)))
    assert report.exit_code == 1
    store = extract.open_store(tmp_path / "s.zarr")
    assert (store.record("grey", "ghfeat").state, store.record("grey", "ghfeat").reason) == ("empty", "no_face")
    torn = store.record("torn", "ghfeat")
    assert (torn.state, torn.reason) == ("failed", "unreadable")
    assert torn.cause == "frames"
    assert store.record("face", "ghfeat").state == "done"


def test_a_stage_in_memory_that_breaks_is_named(clip, tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("the network is on fire")

    monkeypatch.setattr(Superres, "compute", broken)
    report = extract.run([clip], tmp_path / "s.zarr", CONFIG, options=Options(stages=("ghfeat",)))
    assert report.exit_code == 1
    failed = {failure.instance: failure for failure in report.failures}
    assert set(failed) == {"landmarks", "ghfeat"}
    assert all(failure.cause == "superres" for failure in failed.values())
    assert all("the network is on fire" in failure.message for failure in failed.values())


MEASURED = """
import resource, sys
import extract
from extract.config import ExtractConfig
from extract.inputs.manifest import Clip
from extract.running.selection import Options

clip = Clip(id="face", video=sys.argv[1])
config = ExtractConfig(instances=eval(sys.argv[3]), run={"cpu_threads": 1, "block_rows": 8})
assert extract.run([clip], sys.argv[2], config, options=Options(stages=("ghfeat",))).exit_code == 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_clip(media_dir, tmp_path):
    """Peak of a process of its own, for a clip and one ten times as long; groups of 8 frames, a few in flight."""
    peak_kb = []
    for num_frames in (64, 640):
        path = tmp_path / f"{num_frames}.mkv"
        write_clip(path, faces(media_dir, num_frames, width=640))
        arguments = (str(path), str(tmp_path / f"{num_frames}.zarr"), repr(INSTANCES))
        found = subprocess.run([sys.executable, "-c", MEASURED, *arguments], check=True, capture_output=True, text=True)
        peak_kb.append(int(found.stdout))
    grown_mb = (peak_kb[1] - peak_kb[0]) / 1024
    frames_mb = 576 * 640 * 360 * 3 / 1e6  # what holding the other frames alone would take
    print(f"peak {peak_kb[0] / 1024:.0f} MB, ten times as long {grown_mb:+.1f} MB; its frames alone {frames_mb:.0f} MB")
    assert grown_mb < 0.3 * frames_mb, (
        f"{peak_kb[0] / 1024:.0f} MB, then {grown_mb:+.0f}; the frames are {frames_mb:.0f}"
    )


# ---- extract inspect -----------------------------------------------------------------------------------------------


@pytest.fixture
def inspected(done, clip, tmp_path, monkeypatch):
    """The manifest and a copy of the store in the current folder, and the config's file."""
    monkeypatch.chdir(tmp_path)
    write_manifest(Path("data_manifest.yaml"), [clip], "one face")
    shutil.copytree(done[1] / "s.zarr", "store.zarr")
    Path("c.yaml").write_text(json.dumps({"extract": {"instances": INSTANCES}}))


@pytest.mark.usefixtures("inspected")
def test_a_contact_sheet():
    before = {path: path.stat().st_mtime_ns for path in Path("store.zarr").rglob("*")}
    result = CliRunner().invoke(app, ["inspect", "face", "-c", "c.yaml", "--frames", "3", "-o", "sheet.png"])
    assert result.exit_code == 0, result.stderr
    with Image.open("sheet.png") as opened:
        sheet = np.array(opened)
    assert f"{sheet.shape[1]} x {sheet.shape[0]} pixels" in result.stdout
    assert sheet.shape[1] == GAP_PX + 4 * (TILE_PX + GAP_PX)
    tiles = [sheet[60:200, GAP_PX + i * (TILE_PX + GAP_PX) :][:, :TILE_PX] for i in range(4)]
    assert all(tile.std() > 20 for tile in tiles)
    green, yellow = ((tiles[0] == colour).all(axis=2).sum() for colour in (inspection.BOX_COLOUR, (255, 210, 0)))
    assert green > 50
    assert yellow > 60
    assert before == {path: path.stat().st_mtime_ns for path in Path("store.zarr").rglob("*")}


@pytest.mark.usefixtures("inspected")
@pytest.mark.parametrize("instance", ["faces", "frames"])
def test_a_damaged_record_is_not_looked_past(instance):
    Path("store.zarr/face", instance, "zarr.json").write_bytes(b"{")
    result = CliRunner().invoke(app, ["inspect", "face", "-c", "c.yaml", "-o", "sheet.png"])
    assert result.exit_code == 4, result.output
    assert f"clip face, instance {instance}: zarr.json is damaged; `extract verify --repair` " in result.stderr
    assert not Path("sheet.png").exists()


@pytest.mark.usefixtures("inspected")
def test_the_aligned_face_is_upright_in_the_middle(monkeypatch):
    """Oracle: dlib finds the eyes of the aligned picture level and where FFHQ has them."""
    import dlib

    from extract.stages.detections import Detections, DetectionsConfig
    from extract.weights.resolving import resolve

    looks = []
    monkeypatch.setattr(inspection, "draw", lambda found, *_: looks.extend(found) or Image.new("RGB", (1, 1)))
    large = ["align.output_size=256", "align.transform_size=256"]
    store = Path("other.zarr")
    shutil.copytree("store.zarr", store)
    for stale in ("landmarks", "ghfeat"):
        shutil.rmtree(store / "face" / stale)
    inspection.inspect("face", store=store, config="c.yaml", set=large, frames=2)
    predictor = dlib.shape_predictor(str(resolve("dlib-68-landmarks", Detections(DetectionsConfig())).path))
    for look in looks:
        aligned = look.pictures["align"]
        (box,) = dlib.get_frontal_face_detector()(aligned, 0)
        marks = np.array([(p.x, p.y) for p in predictor(aligned, box).parts()], float)
        left, right = marks[36:42].mean(axis=0), marks[42:48].mean(axis=0)
        assert abs(left[1] - right[1]) < 6
        assert abs((left + right)[0] / 2 - 128) < 8
        assert abs((left + right)[1] / 2 - 121) < 10


@pytest.mark.usefixtures("inspected")
def test_frames_that_are_not_valid_are_shown_as_such(monkeypatch):
    looks = []
    monkeypatch.setattr(inspection, "draw", lambda found, *_: looks.extend(found) or Image.new("RGB", (1, 1)))
    compute = Superres.compute

    def wanting(self, batch):
        return compute(self, batch) | {"valid": np.array([False])}

    monkeypatch.setattr(Superres, "compute", wanting)
    inspection.inspect("face", config="c.yaml", frames=2)
    assert [look.wanting for look in looks] == ["too small"] * 2
    assert all(set(look.pictures) == {"crop"} for look in looks)
    assert "not valid: too small" in caption(looks[0])


def test_the_sheet_of_absent_faces():
    frame = np.full((40, 60, 3), 200, np.uint8)
    sheet = draw([Look(7, 0.28, frame=frame, wanting="no face")], ["crop", "align"], "a")
    assert sheet.width == GAP_PX + 3 * (TILE_PX + GAP_PX)
    told = np.array(sheet)[:, GAP_PX + TILE_PX + GAP_PX :]
    assert (told == inspection.ABSENT).all(axis=2).mean() > 0.5
    assert (told == inspection.TEXT).all(axis=2).any()
    assert caption(Look(7, 0.28, wanting="no face")) == "frame 7   0.280 s   not valid: no face"
    assert caption(Look(7, 0.28, score=1.234)) == "frame 7   0.280 s   score 1.23"


def test_given_crops_have_no_frame(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = Clip(id="given", crops=draw_crops(tmp_path / "crops", [1, 2, 4]), fps=25)
    write_manifest(Path("data_manifest.yaml"), [given], "crops")
    Path("c.yaml").write_text(json.dumps({"extract": {"instances": INSTANCES}}))
    assert extract.run([given], "store.zarr", CONFIG, options=Options(stages=("frames",))).exit_code == 0
    sheet = inspection.inspect("given", config="c.yaml", frames=4)
    assert sheet.width == GAP_PX + 3 * (TILE_PX + GAP_PX)


@pytest.mark.usefixtures("inspected")
@pytest.mark.parametrize(
    ("name", "config", "store", "message"),
    [
        (
            "face",
            "c.yaml",
            "none.zarr",
            r"clip face: frames is missing in none.zarr; `extract run --store none.zarr --stage frames",
        ),
        ("fase", "c.yaml", "store.zarr", "fase.*face"),
        ("face", "sound.yaml", "store.zarr", "the config has no instance of crop, superres, align"),
    ],
)
def test_what_cannot_be_inspected(name, config, store, message):
    Path("sound.yaml").write_text("extract: {instances: {hubert: {weights: random, architecture: small}}}")
    with pytest.raises(UsageError, match=message):
        inspection.inspect(name, store=store, config=config)


@pytest.mark.usefixtures("inspected")
def test_a_sheet_is_a_png():
    result = CliRunner().invoke(app, ["inspect", "face", "-c", "c.yaml", "-o", "x.jpg"])
    assert result.exit_code == 2
    assert "-o x.jpg: expected a name that ends in .png" in result.stderr
