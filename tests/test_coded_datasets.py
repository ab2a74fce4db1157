"""DISFA and BP4D: small trees of the documented layouts, from the folder to labels in a store."""

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import extract
from extract.cli import app
from extract.errors import UsageError
from extract.inputs.annotations import read_au, read_intensity
from extract.inputs.datasets import bp4d, disfa
from extract.inputs.datasets.bp4d import scan_bp4d
from extract.inputs.datasets.coded import write_labels
from extract.inputs.datasets.disfa import scan_disfa
from extract.inputs.manifest import load_manifest
from tests.media_files import greys, write_clip

PEOPLE = ["SN001", "SN002", "SN003", "SN013", "SN018"]
CODED, DECODED = 11, 13
"""Frames with codes, and of the movie: the codes end before it."""


def movie(path, num_frames=DECODED):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_clip(path.with_suffix(".mov"), greys(num_frames), rate=20).rename(path)


def intensity(person, au, frame):
    """Of a frame counted from 0."""
    return (3 * PEOPLE.index(person) + au + frame * (au + 1)) % 6


@pytest.fixture(scope="module")
def movies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("movies")
    movie(folder / "m.avi")
    return folder / "m.avi"


@pytest.fixture
def disfa_tree(tmp_path, movies):
    root = tmp_path / "DISFA"
    for person in PEOPLE:
        folder = root / "ActionUnit_Labels" / person
        folder.mkdir(parents=True)
        for au in disfa.AUS:
            lines = [f"{frame + 1},{intensity(person, au, frame)}\n" for frame in range(CODED)]
            (folder / f"{person}_au{au}.txt").write_text("".join(lines))
        for side in ("Left", "Right"):
            path = root / f"Videos_{side}Camera" / f"{side}Video{person}_comp.avi"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(movies.read_bytes())
    return root


def test_disfa_people_codes_and_movies(disfa_tree, tmp_path):
    scan = scan_disfa(disfa_tree, tmp_path / "labels")
    assert [clip.id for clip in scan.clips] == PEOPLE
    assert all(clip.subject == clip.id and clip.split is None for clip in scan.clips)
    assert scan.clips[0].video == disfa_tree / "Videos_LeftCamera/LeftVideoSN001_comp.avi"
    right = scan_disfa(disfa_tree, tmp_path / "labels", side="right")
    assert right.clips[0].video == disfa_tree / "Videos_RightCamera/RightVideoSN001_comp.avi"
    assert scan.counts == {"subjects": 5, "clips": 5, "coded frames": 5 * CODED}
    assert not (tmp_path / "labels").exists()
    write_labels(scan.label_files)
    for clip in scan.clips:
        coded = read_intensity(clip.labels.intensity, disfa.AUS)
        expected = [[intensity(clip.id, au, frame) for au in disfa.AUS] for frame in range(CODED)]
        assert coded.au.tolist() == expected  # line 1 is frame 1: the first of the movie
        assert coded.listed
        present = read_au(clip.labels.au, disfa.AUS).au
        assert present.tolist() == [[int(value >= 2) for value in row] for row in expected]


@pytest.mark.parametrize("threshold", [1, 3, 5])
def test_disfa_presence_begins_at_the_threshold(disfa_tree, tmp_path, threshold):
    scan = scan_disfa(disfa_tree, tmp_path / "labels", threshold=threshold)
    write_labels(scan.label_files)
    labels = scan.clips[1].labels
    assert labels.au.name == f"SN002_au_from_{threshold}.csv"
    rated = read_intensity(labels.intensity, disfa.AUS).au
    assert np.array_equal(read_au(labels.au, disfa.AUS).au, rated >= threshold)


def test_disfa_other_copies_are_read_alike(disfa_tree, tmp_path):
    """Frames from 0, files called au1.txt, 4,844 frames of one action unit, a frame that could not be coded."""
    folder = disfa_tree / "ActionUnit_Labels/SN003"
    for au in disfa.AUS:
        codes = [f"{frame} {9 if frame == 4 else intensity('SN003', au, frame)}" for frame in range(CODED - (au == 4))]
        (folder / f"SN003_au{au}.txt").unlink()
        (folder / f"au{au}.txt").write_text("\r\n".join(codes))
    scan = scan_disfa(disfa_tree, tmp_path / "labels")
    write_labels(scan.label_files)
    found = read_intensity(scan.clips[2].labels.intensity, disfa.AUS).au
    for column, au in enumerate(disfa.AUS):
        expected = [-1 if frame == 4 else intensity("SN003", au, frame) for frame in range(CODED)]
        if au == 4:
            expected[-1] = -1
        assert found[:, column].tolist() == expected
    present = read_au(scan.clips[2].labels.au, disfa.AUS).au
    assert np.array_equal(present == -1, found == -1)


def test_disfa_published_folds():
    assert [len(fold) for fold in disfa.FOLDS] == [9, 9, 9]
    everyone = {f"SN{n:03d}" for n in (*range(1, 14), 16, 17, 18, 21, *range(23, 33))}
    assert disfa.FOLDS[0] | disfa.FOLDS[1] | disfa.FOLDS[2] == everyone
    assert len(everyone) == 27


def test_bp4d_published_folds():
    assert [len(fold) for fold in bp4d.FOLDS] == [14, 14, 13]
    everyone = {*(f"F{n:03d}" for n in range(1, 24)), *(f"M{n:03d}" for n in range(1, 19))}
    assert bp4d.FOLDS[0] | bp4d.FOLDS[1] | bp4d.FOLDS[2] == everyone
    assert len(everyone) == 41


def test_a_fold_tests_its_people_and_holds_out_some_of_the_others(disfa_tree, tmp_path):
    for fold, tested in ((1, {"SN001", "SN002"}), (2, {"SN013", "SN018"}), (3, {"SN003"})):
        splits = {clip.id: clip.split for clip in scan_disfa(disfa_tree, tmp_path, fold=fold, val=0.3).clips}
        assert {person for person, split in splits.items() if split == "test"} == tested
        assert list(splits.values()).count("val") == 1
        without = {clip.id: clip.split for clip in scan_disfa(disfa_tree, tmp_path, fold=fold, val=0).clips}
        assert set(without.values()) == {"train", "test"}
    kept = scan_disfa(disfa_tree, tmp_path, fold=3, known={"SN018": "val", "SN003": "train"}, val=0).clips
    assert {clip.id: clip.split for clip in kept if clip.split != "train"} == {"SN018": "val"}


def test_disfa_from_the_command_to_the_store(disfa_tree, tmp_path):
    manifest = tmp_path / "m.yaml"
    command = ["manifest", "disfa", str(disfa_tree), "-o", str(manifest), "--fold", "2", "--threshold", "3"]
    late = disfa_tree / "ActionUnit_Labels/SN018"
    late.rename(tmp_path / "SN018")
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 0, first.output
    lines = first.stdout.splitlines()
    assert lines[0].endswith("4 clips (train 2, val 1, test 1)")
    assert "  subjects: 4 (published: 27)" in lines
    following = next(line for line in lines if line.startswith("next: "))
    assert following.endswith("--set 'labels.aus=[1,2,4,5,6,9,12,15,17,20,25,26]' --set 'labels.also=[intensity]'")
    text = manifest.read_text()
    assert "Present: intensity 3 or more. Test: fold 2 of 3; val: 0.1 of the other people, seed 0." in text
    assert "au: m_labels/SN001_au_from_3.csv" in text
    (tmp_path / "SN018").rename(late)
    refused = CliRunner().invoke(app, command)
    assert (refused.exit_code, "`--update`" in refused.stderr) == (2, True)
    assert CliRunner().invoke(app, [*command, "--update"]).exit_code == 0
    clips = {clip.id: clip for clip in load_manifest(manifest)}
    assert clips["SN018"].split == clips["SN013"].split == "test"

    store = tmp_path / "s.zarr"
    settings = ["labels.aus=[1,2,4,5,6,9,12,15,17,20,25,26]", "labels.also=[intensity]"]
    report = extract.run(manifest, store, stages=["labels"], set=settings)
    assert (report.exit_code, report.warnings) == (0, [])
    kept = extract.open_store(store)
    for person in PEOPLE:
        rated, present = (kept.read(person, "labels", array).values for array in ("intensity", "au"))
        expected = np.array([[intensity(person, au, frame) for au in disfa.AUS] for frame in range(CODED)])
        assert np.array_equal(rated[:CODED], expected)
        assert (rated[CODED:] == -1).all()
        assert np.array_equal(present[:CODED], expected >= 3)
        assert (present[CODED:] == -1).all()
        assert len(rated) == DECODED


OCC = (1, 2, 4, 6, 7, 10, 12, 14, 15, 17, 23, 24, 39)
FIRST, LAST = 6, 10
"""Frames that are coded, counted from 1, of the thirteen."""


def presence(au, frame):
    return 9 if (au, frame) == (2, 7) else (au * frame) % 3 % 2


@pytest.fixture
def bp4d_tree(tmp_path, movies):
    root = tmp_path / "BP4D"
    for task in ("F001_T1", "F001_T2", "M011_T1"):
        occ = root / "AUCoding" / "AU_OCC" / f"{task}.csv"
        occ.parent.mkdir(parents=True, exist_ok=True)
        rows = [[frame, *(presence(au, frame) for au in OCC)] for frame in range(FIRST, LAST + 1)]
        occ.write_text("\n".join(",".join(map(str, row)) for row in [[0, *OCC], *rows]))
        for au in (6, 12):
            path = root / "AUCoding" / "AU_INT" / f"AU{au:02d}" / f"{task}_AU{au:02d}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{frame},{(au + frame) % 6}\n" for frame in range(FIRST, LAST + 1)))
    person, task = "F001", "T1"
    (root / "videos" / person).mkdir(parents=True)
    (root / "videos" / person / f"{task}.avi").write_bytes(movies.read_bytes())
    (root / "videos" / "M011_T1.avi").write_bytes(movies.read_bytes())
    return root


def test_bp4d_codes_lie_in_the_middle_of_the_video(bp4d_tree, tmp_path):
    manifest = tmp_path / "bp4d.yaml"
    result = CliRunner().invoke(app, ["manifest", "bp4d", str(bp4d_tree), "-o", str(manifest), "--fold", "2"])
    assert result.exit_code == 0, result.output
    assert "left out: F001_T2: no movie F001_T2.*" in result.stdout
    clips = {clip.id: clip for clip in load_manifest(manifest)}
    assert {clip.id: (clip.subject, clip.split) for clip in clips.values()} == {
        "F001_T1": ("F001", "train"),
        "M011_T1": ("M011", "test"),
    }
    store = tmp_path / "s.zarr"
    settings = ["labels.aus=[1,2,4,6,7,10,12,14,15,17,23,24]", "labels.also=[intensity]"]
    report = extract.run(manifest, store, stages=["labels"], set=settings)
    assert report.exit_code == 0
    assert [str(notice) for notice in report.warnings if "F001" in str(notice)] == [
        "clip F001_T1, labels: columns of the label file that are none of `labels.aus` (default: the twelve) are left "
        "out: AU39"
    ]
    kept = extract.open_store(store)
    present, rated = (kept.read("F001_T1", "labels", array).values for array in ("au", "intensity"))
    assert present.shape == rated.shape == (DECODED, 12)
    for row in range(DECODED):
        frame = row + 1
        inside = FIRST <= frame <= LAST
        codes = [presence(au, frame) for au in bp4d.AUS]
        assert present[row].tolist() == ([-1 if code == 9 else code for code in codes] if inside else [-1] * 12)
        for column, au in enumerate(bp4d.AUS):
            assert rated[row, column] == ((au + frame) % 6 if inside and au in {6, 12} else -1)
    assert (present == -1).sum() == 12 * (DECODED - 5) + 1  # 9 becomes -1


def test_bp4d_frames_counted_from_0(bp4d_tree, tmp_path):
    for first in (0, 1):
        scan = scan_bp4d(bp4d_tree, tmp_path / "labels", first_frame=first)
        write_labels(scan.label_files)
        au = read_au(scan.clips[0].labels.au, bp4d.AUS).au
        assert np.flatnonzero(au[:, 0] >= 0).tolist() == list(range(FIRST - first, LAST + 1 - first))


def test_bp4d_crops_are_matched_by_number(bp4d_tree, tmp_path):
    """Numbers with and without zeros; the label of frame 6 lies in the row of crop 6."""
    crops = bp4d_tree / "cropped_aligned" / "F001" / "T2"
    crops.mkdir(parents=True)
    whole = bp4d_tree / "2D" / "F001" / "T2"
    whole.mkdir(parents=True)
    for frame in range(FIRST, LAST + 1):
        name = f"{frame}.jpg" if frame % 2 else f"{frame:04d}.jpg"
        Image.fromarray(np.full((112, 112, 3), 20 * frame, np.uint8)).save(crops / name)
        Image.fromarray(np.zeros((300, 400, 3), np.uint8)).save(whole / name)
    assert "F001_T2" in scan_bp4d(bp4d_tree, tmp_path / "l").left_out
    assert "--fps N takes the crops alone" in scan_bp4d(bp4d_tree, tmp_path / "l").left_out["F001_T2"]
    manifest = tmp_path / "m.yaml"
    command = ["manifest", "bp4d", str(bp4d_tree), "-o", str(manifest), "--fps", "25"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "note: no splits; --fold 1, 2 or 3 takes the published ones" in result.stdout
    clip = next(clip for clip in load_manifest(manifest) if clip.id == "F001_T2")
    assert (clip.video, clip.crops, clip.fps) == (None, crops, 25)
    assert extract.run(manifest, tmp_path / "s.zarr", stages=["labels"], set=["labels.aus=[1,39]"]).exit_code == 0
    au = extract.open_store(tmp_path / "s.zarr").read("F001_T2", "labels", "au").values
    expected = [[presence(1, frame), presence(39, frame)] for frame in range(FIRST, LAST + 1)]
    assert au.tolist() == [[-1, -1]] * (FIRST - 1) + expected
    with pytest.raises(UsageError, match=r"--first-frame 0: the crops in .*T2 are named by the codes' numbers"):
        scan_bp4d(bp4d_tree, tmp_path / "l", first_frame=0)


DISFA_FILE = "ActionUnit_Labels/SN001/SN001_au1.txt"
BP4D_FILE = "AUCoding/AU_OCC/F001_T1.csv"

BAD_DISFA = {
    "seven": ("1,7\n", ":1: found code 7, expected one of 0, 1, 2, 3, 4, 5, 9, -1"),
    "three columns": ("1,2,3\n", ":1: found 3 numbers, expected 2: frame and code"),
    "words": ("1,2\n2,high\n", ":2: found '2,high', expected whole numbers"),
    "fraction": ("1,2.5\n", ":1: found '1,2.5', expected whole numbers"),
    "repeated": ("1,2\n1,2\n", ":2: found frame 1, expected more than 1: frames in order, each once"),
    "starts late": ("5,2\n", ": found frames from 5, expected them from 0 or from 1"),
    "another count": ("0,2\n", "expected them from 0 or from 1, and alike in all files of a person"),
}


@pytest.mark.parametrize(("text", "message"), BAD_DISFA.values(), ids=BAD_DISFA)
def test_malformed_codes_of_disfa(disfa_tree, tmp_path, text, message):
    (disfa_tree / DISFA_FILE).write_text(text)
    with pytest.raises(UsageError) as refusal:
        scan_disfa(disfa_tree, tmp_path / "labels")
    assert message in str(refusal.value)
    assert "SN001_au" in str(refusal.value)


BAD_BP4D = {
    "no header": ("", ":1: found no action units, expected a line such as `0,1,2,4`"),
    "two": ("0,1,2\n6,0,2\n", ":2: found code 2, expected one of 0, 1, 9, -1"),
    "short row": ("0,1,2\n6,0\n", ":2: found 2 numbers, expected 3 as in the first line"),
    "unordered": ("0,1\n7,0\n6,0\n", ":3: found frame 6, expected more than 7"),
    "from 0": ("0,1\n0,1\n1,0\n", ": found frame 0, but frames are taken to be counted from 1"),
    "twice": ("0,1,1\n6,0,0\n", ":1: found no action units"),
}


@pytest.mark.parametrize(("text", "message"), BAD_BP4D.values(), ids=BAD_BP4D)
def test_malformed_codes_of_bp4d(bp4d_tree, tmp_path, text, message):
    (bp4d_tree / BP4D_FILE).write_text(text)
    with pytest.raises(UsageError) as refusal:
        scan_bp4d(bp4d_tree, tmp_path / "labels")
    assert f"{bp4d_tree / BP4D_FILE}{message}" in str(refusal.value)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"threshold": 0}, "--threshold 0: expected an intensity from 1 to 5"),
        ({"fold": 4}, "--fold 4: expected 1 to 3"),
        ({"fold": 1, "val": 1.5}, r"--val 1\.5: expected a share of the other people"),
    ],
)
def test_settings_out_of_range_are_refused(disfa_tree, tmp_path, settings, match):
    with pytest.raises(UsageError, match=match):
        scan_disfa(disfa_tree, tmp_path / "labels", **settings)


def test_what_is_no_such_tree_is_refused(disfa_tree, bp4d_tree, tmp_path):
    with pytest.raises(UsageError, match="does not exist; expected the folder of DISFA"):
        scan_disfa(tmp_path / "none", tmp_path)
    with pytest.raises(UsageError, match=r"no action unit codes; expected ActionUnit_Labels/SN001/SN001_au1.txt"):
        scan_disfa(bp4d_tree, tmp_path)
    with pytest.raises(UsageError, match=r"no action unit codes; expected AUCoding/AU_OCC/F001_T1.csv"):
        scan_bp4d(disfa_tree, tmp_path)
    with pytest.raises(UsageError, match=r"--first-frame 2: expected 0 or 1"):
        scan_bp4d(bp4d_tree, tmp_path, first_frame=2)
    for path in disfa_tree.rglob("*.avi"):
        path.unlink()
    with pytest.raises(UsageError, match=r"codes of 5 people, but none gives a clip; SN001: no movie LeftVideoSN001"):
        scan_disfa(disfa_tree, tmp_path)
    other = disfa_tree / "copy" / "SN001"
    other.mkdir(parents=True)
    (other / "SN001_au1.txt").write_text("1,0\n")
    with pytest.raises(UsageError, match="two code files of one action unit; keep one"):
        scan_disfa(disfa_tree, tmp_path)
    result = CliRunner().invoke(app, ["manifest", "disfa", str(disfa_tree), "-o", str(tmp_path / "m"), "--side", "lef"])
    assert (result.exit_code, "did you mean 'left'" in result.stderr) == (2, True)
