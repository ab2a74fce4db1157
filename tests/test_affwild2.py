"""A tiny tree of Aff-Wild2's exact layout, from the folder to a fitted model."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import extract
import fusion
from extract.cli import app
from extract.errors import UsageError
from extract.inputs.datasets.affwild2 import scan_affwild2
from extract.inputs.manifest import load_manifest
from fusion.config import FusionConfig
from tests.media_files import greys, tone, write_clip

HEADER = "AU1,AU2,AU4,AU6,AU7,AU10,AU12,AU15,AU23,AU24,AU25,AU26"
T = 12
FACES = {
    "Train_Set": ["10-60-1280x720_left", "10-60-1280x720_right", "102", "video18", "122-60-1920x1080-1"],
    "Validation_Set": ["video45_1", "146"],
}
CHALLENGES = ("AU_Detection_Challenge", "EXPR_Classification_Challenge")
MOVIES = ["10-60-1280x720.mp4", "102.mp4", "video18.avi", "122-60-1920x1080-1.mp4", "video45_1.mp4", "146.mp4"]


def au_file(name, rows=T):
    values = np.random.default_rng(sum(name.encode())).integers(0, 2, (rows, 12))
    lines = [",".join(map(str, row)) for row in values]
    lines[3] = ",".join(["-1"] * 12)
    return "\n".join([HEADER, *lines]) + "\n"


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "Aff-Wild2"
    for official, names in FACES.items():
        for challenge in CHALLENGES:
            folder = root / "Third ABAW Annotations" / challenge / official
            folder.mkdir(parents=True)
            for name in names:
                text = au_file(name)
                if challenge.startswith("EXPR"):
                    if name == "102":
                        continue
                    text = "Neutral,Anger,Disgust,Fear,Happiness,Sadness,Surprise,Other\n" + "4\n" * T
                (folder / f"{name}.txt").write_text(text)
        for name in names:
            crops = root / "cropped_aligned" / name
            crops.mkdir(parents=True)
            for number in range(1, T + 1):
                if number != 5:
                    noise = np.random.default_rng([number, *name.encode()]).integers(0, 256, (112, 112, 3), np.uint8)
                    Image.fromarray(noise).save(crops / f"{number:05d}.jpg")
    for number, name in enumerate(MOVIES):
        folder = root / f"batch{number % 2 + 1}"
        folder.mkdir(exist_ok=True)
        movie = write_clip(folder / "m.mov", greys(T), rate=25, sound=tone(0.5, frequency_hz=200 + 60 * number))
        movie.rename(folder / name)
    (root / "batch1" / "10-60-1280x720.srt").write_text("1\n00:00:00,000 --> 00:00:00,400\nhello you\n")
    return root


def test_what_belongs_together(tree):
    found = scan_affwild2(tree)
    clips = {clip.id: clip for clip in found.clips}
    assert sorted(clips) == sorted(name for names in FACES.values() for name in names)
    left, right = clips["10-60-1280x720_left"], clips["10-60-1280x720_right"]
    assert left.video == right.video == tree / "batch1/10-60-1280x720.mp4"
    assert left.transcript == right.transcript == tree / "batch1/10-60-1280x720.srt"
    assert left.source_video == right.source_video == "10-60-1280x720"
    assert (left.face, right.face, clips["102"].face) == ("left", "right", "largest")
    assert left.crops == tree / "cropped_aligned/10-60-1280x720_left"
    assert right.labels.au.name == "10-60-1280x720_right.txt"
    assert left.labels.expr.parent.parent.name == "EXPR_Classification_Challenge"
    assert clips["102"].labels.expr is None
    assert clips["video18"].video.suffix == ".avi"
    assert {clip.split for clip in found.clips if clip.id in FACES["Validation_Set"]} == {"test"}
    assert found.counts == {
        "annotation files": {"Train_Set": 5, "Validation_Set": 2},
        "annotated frames": {"Train_Set": 55, "Validation_Set": 22},
        "annotated frames without a crop": {"Train_Set": 5, "Validation_Set": 2},
    }


def test_valence_and_arousal_are_taken_along(tree, tmp_path):
    """Of the faces with action units; a face whose sets differ is named, since one of them decides."""
    assert all(clip.labels.va is None for clip in scan_affwild2(tree).clips)
    folder = tree / "Third ABAW Annotations" / "VA_Estimation_Challenge"
    for official, names in (("Train_Set", ["102", "146", "no AUs"]), ("Validation_Set", ["video45_1"])):
        (folder / official).mkdir(parents=True)
        for name in names:
            (folder / official / f"{name}.txt").write_text("valence,arousal\n" + "0.25,-1\n-5,-5\n" * (T // 2))
    found = scan_affwild2(tree)
    assert {clip.id: clip.labels.va for clip in found.clips if clip.labels.va} == {
        "102": folder / "Train_Set/102.txt",
        "146": folder / "Train_Set/146.txt",
        "video45_1": folder / "Validation_Set/video45_1.txt",
    }
    assert next(clip.split for clip in found.clips if clip.id == "146") == "test"
    assert "left out, no AU labels, only others: 1 (first: no AUs)" in found.notes
    assert "without valence and arousal: 4 of 7 clips" in "\n".join(found.notes)
    differ = "valence and arousal in another official set than the AUs, whose split counts: 1 (first: 146)"
    assert differ in found.notes
    manifest = tmp_path / "m.yaml"
    assert CliRunner().invoke(app, ["manifest", "affwild2", str(tree), "-o", str(manifest)]).exit_code == 0
    report = extract.run(manifest, tmp_path / "s.zarr", stages=["labels"], set=["labels.also=[va]"])
    assert report.exit_code == 0
    values = extract.open_store(tmp_path / "s.zarr").read("146", "labels", "va").values
    assert values.tolist() == [[0.25, -1], [-5, -5]] * (T // 2)


def test_the_training_set_is_parted_by_source_video(tree):
    """Both faces of a movie on one side, whatever the seed; the seed says which."""
    seen = set()
    for seed in range(12):
        splits = {clip.id: clip.split for clip in scan_affwild2(tree, seed=seed).clips}
        assert splits["10-60-1280x720_left"] == splits["10-60-1280x720_right"]
        val = {clip for clip, split in splits.items() if split == "val"}
        assert len({clip.removesuffix("_left").removesuffix("_right") for clip in val}) == 1
        assert splits == {clip.id: clip.split for clip in scan_affwild2(tree, seed=seed).clips}
        seen.add(tuple(sorted(val)))
    assert len(seen) > 1


def test_an_update_keeps_what_was_written_and_the_split(tree, tmp_path):
    """A face that comes later joins the other face of its movie, though the new seed would split otherwise."""
    path = tmp_path / "m.yaml"
    late = [tree / "Third ABAW Annotations" / c / "Train_Set/10-60-1280x720_right.txt" for c in CHALLENGES]
    kept = [file.read_bytes() for file in late]
    command = ["manifest", "affwild2", str(tree), "-o", str(path)]
    for seed in range(6):
        path.unlink(missing_ok=True)
        for file in late:
            file.unlink()
        assert CliRunner().invoke(app, [*command, "--seed", str(seed)]).exit_code == 0
        edited = path.read_text().replace("- id: '102'\n", "- id: person\n  subject: anna\n")
        path.write_text(edited)
        for file, data in zip(late, kept, strict=True):
            file.write_bytes(data)
        refused = CliRunner().invoke(app, command)
        assert (refused.exit_code, "`--update`" in refused.stderr) == (2, True)
        result = CliRunner().invoke(app, [*command, "--update", "--seed", str(seed + 1)])
        assert result.exit_code == 0, result.output
        assert "6 clips were there, 1 added: 10-60-1280x720_right" in result.stdout
        assert path.read_text().startswith(edited)
        clips = {clip.id: clip for clip in load_manifest(path)}
        assert len(clips) == 7
        assert clips["10-60-1280x720_right"].split == clips["10-60-1280x720_left"].split
        assert clips["10-60-1280x720_right"].face == "right"


def test_the_command_prints_counts_beside_the_known_ones(tree, tmp_path):
    (tree / "batch2" / "146.mp4").unlink(missing_ok=True)
    result = CliRunner().invoke(app, ["manifest", "affwild2", str(tree), "-o", str(tmp_path / "m.yaml"), "--seed", "3"])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].endswith("6 clips (train 4, val 1, test 1)") or lines[0].endswith(
        "6 clips (train 3, val 2, test 1)"
    )
    assert "  annotation files, Train_Set: 5 (others counted 295)" in lines
    assert "  annotated frames, Validation_Set: 22 (others counted 445,845)" in lines
    assert "left out: 146: no movie 146.*, so no frame times; --fps N assumes them" in lines
    assert len(load_manifest(tmp_path / "m.yaml")) == 6
    assert "seed 3" in (tmp_path / "m.yaml").read_text().splitlines()[0]
    assumed = CliRunner().invoke(
        app, ["manifest", "affwild2", str(tree), "-o", str(tmp_path / "n.yaml"), "--fps", "30"]
    )
    assert "7 clips" in assumed.stdout.splitlines()[0]
    (clip,) = [clip for clip in load_manifest(tmp_path / "n.yaml") if clip.id == "146"]
    assert (clip.video, clip.fps) == (None, 30)


CONFIG = """\
extract:
  instances:
    labels: {}
    detections: {}
    swin: {weights: random, architecture: small, resize: 64, crop: 64}
    hubert: {weights: random, architecture: small}
    roberta: {weights: random, architecture: small}
fusion:
  modalities:
    swin: {kind: frame, instance: swin, array: feature, project: 8}
    hubert: {kind: steps, instance: hubert, array: feature, before_s: 0.1, after_s: 0.1, project: 8}
    roberta: {kind: tokens, instance: roberta, array: token, project: 8}
  model: {hidden: 8, head: 16}
  training: {max_epochs: 1}
"""


def test_from_the_tree_to_a_fitted_model(tree, tmp_path):
    """Three broken annotation files fail their clips alone; the rest is extracted and fitted."""
    annotations = tree / "Third ABAW Annotations/AU_Detection_Challenge/Train_Set"
    (annotations / "video18.txt").write_text(au_file("video18").partition("\n")[2])
    (annotations / "102.txt").write_text(au_file("102").replace("-1,-1", "-1", 1))
    wrong = au_file("122").splitlines()
    (annotations / "122-60-1920x1080-1.txt").write_text("\n".join([*wrong[:5], "2" + wrong[5][1:], *wrong[6:]]) + "\n")
    (tmp_path / "c.yaml").write_text(CONFIG)
    manifest, store_path = tmp_path / "m.yaml", tmp_path / "s.zarr"
    assert CliRunner().invoke(app, ["manifest", "affwild2", str(tree), "-o", str(manifest)]).exit_code == 0
    common = ["--manifest", str(manifest), "--store", str(store_path), "-c", str(tmp_path / "c.yaml")]
    result = CliRunner().invoke(app, ["run", *common, "--json"])
    assert result.exit_code == 1, result.output
    failures = {(f["clip"], f["instance"]): f["message"] for f in json.loads(result.stdout)["failures"]}
    assert {clip for clip, _ in failures} == {"video18", "102", "122-60-1920x1080-1"}
    assert {instance for _, instance in failures} == {"labels"}
    assert "video18.txt:1: found column" in failures["video18", "labels"]
    assert "102.txt:5: found 11 columns" in failures["102", "labels"]
    assert "122-60-1920x1080-1.txt:6: found value '2', expected 0, 1 or -1" in failures["122-60-1920x1080-1", "labels"]

    store = extract.open_store(store_path)
    assert "detections" not in store.instances("10-60-1280x720_left")
    assert store.read("video45_1", "swin", "feature").valid.tolist() == [i != 4 for i in range(T)]
    expr = store.read("10-60-1280x720_left", "labels", "expr").values
    assert expr.tolist() == [4] * T
    assert set(store.read("146", "labels", "au").values[3].tolist()) == {-1}

    for name in FACES["Train_Set"]:  # let the two whole ones train, whatever the seed held out
        store_write = extract.store.Store.open(store_path, "a")
        store_write.set_attributes(name, {**store.attributes(name), "split": "train"})
    leave_one = FusionConfig.model_validate(fusion_section())
    (scores,) = fusion.fit(store_path, tmp_path / "run", leave_one, skip_failed=True)
    assert (scores.clips, scores.frames) == (2, 2 * (T - 1))
    tested = fusion.evaluate(store_path, tmp_path / "run", split="test")
    assert (tested.clips, tested.frames, tested.missing["swin"]) == (2, 22, 2)


def fusion_section():
    import yaml

    return yaml.safe_load(CONFIG)["fusion"]


def test_two_annotations_of_a_face_are_refused(tree):
    other = tree / "5th ABAW Annotations/AU_Detection_Challenge/Train_Set"
    other.mkdir(parents=True)
    (other / "102.txt").write_text(au_file("102"))
    with pytest.raises(UsageError, match="two annotations of one face; name the folder of one year"):
        scan_affwild2(tree)


def test_what_is_no_such_tree_is_refused(tmp_path):
    with pytest.raises(UsageError, match="does not exist; expected the folder of Aff-Wild2"):
        scan_affwild2(tmp_path / "gone")
    with pytest.raises(UsageError, match="no action unit annotations; expected AU_Detection_Challenge or AU_Set with"):
        scan_affwild2(tmp_path)
    lone = tmp_path / "AU_Set/Train_Set"
    lone.mkdir(parents=True)
    (lone / "a.txt").write_text(au_file("a"))
    with pytest.raises(UsageError, match=r"1 annotated faces, but none gives a clip; a: neither a movie a\.\* nor"):
        scan_affwild2(tmp_path)

    twice = tmp_path / "EXPR_Set/Train_Set"
    twice.mkdir(parents=True)
    (twice / "a.txt").write_text("Neutral\n0\n")
    again = tmp_path / "older/EXPR_Set/Train_Set"
    again.mkdir(parents=True)
    (again / "a.txt").write_text("Neutral\n0\n")
    with pytest.raises(UsageError, match="two annotations of one face"):
        scan_affwild2(tmp_path)


@pytest.mark.parametrize("fps", ["0", "-25", "nan"])
def test_a_rate_that_is_none_is_refused(tree, tmp_path, fps):
    result = CliRunner().invoke(
        app, ["manifest", "affwild2", str(tree), "-o", str(tmp_path / "m.yaml"), f"--fps={fps}"]
    )
    assert result.exit_code == 2
    assert f"--fps {fps}: expected frames per second, more than 0" in result.output
    assert not (tmp_path / "m.yaml").exists()


def test_only_what_lies_by_the_movie_is_its_transcript(tree):
    """Tables of that name are everywhere: predictions, landmarks, other programs' JSON."""
    srt = "1\n00:00:00,000 --> 00:00:00,400\nhello\n"
    away = tree / "landmarks"
    away.mkdir()
    (away / "102.srt").write_text(srt)
    clips = {clip.id: clip for clip in scan_affwild2(tree).clips}
    assert clips["102"].transcript is None

    movie = clips["102"].video
    movie.with_suffix(".csv").write_text("frame,pts_s,valid,AU01\n")
    movie.with_suffix(".json").write_text('{"units": {}}')
    assert {clip.id: clip for clip in scan_affwild2(tree).clips}["102"].transcript is None

    movie.with_suffix(".csv").write_text("word,start_s,end_s\nhello,0,0.4\n")
    assert {clip.id: clip for clip in scan_affwild2(tree).clips}["102"].transcript == movie.with_suffix(".csv")
    (tree / "transcripts").mkdir()
    (tree / "transcripts/102.vtt").write_text("WEBVTT\n")
    (tree / "transcripts/10-60-1280x720.json").write_text('{"segments": []}')
    clips = {clip.id: clip for clip in scan_affwild2(tree).clips}
    assert clips["102"].transcript == tree / "transcripts/102.vtt"
    assert clips["10-60-1280x720_left"].transcript == tree / "batch1/10-60-1280x720.srt"


def test_what_is_lacking_is_named(tree):
    (tree / "batch2/102.mp4").unlink()
    (tree / "cropped_aligned/video45_1").rename(tree / "elsewhere")
    expr = tree / "Third ABAW Annotations/EXPR_Classification_Challenge/Train_Set"
    (expr / "7-60-1920x1080.txt").write_text("Neutral\n0\n")
    (tree / "videos").mkdir()
    (tree / "videos/146.avi").write_bytes((tree / "batch2/146.mp4").read_bytes())
    validation = tree / "Third ABAW Annotations/AU_Detection_Challenge/Validation_Set"
    (validation / "10-60-1280x720.txt").write_text(au_file("10-60-1280x720"))
    found = scan_affwild2(tree, fps=30)
    assert found.notes[:2] == (
        "without movie: 1 of 8 clips (first: 102)",
        "without crops: 2 of 8 clips (first: 10-60-1280x720, video45_1)",
    )
    assert found.notes[2].startswith("without transcript: 5 of 8 clips (first: 102, 122-60-1920x1080-1, 146)")
    assert found.notes[4:] == (
        "left out, no AU labels, only others: 1 (first: 7-60-1920x1080)",
        f"not used, another of the same name: 1 (first: {tree / 'videos/146.avi'})",
        "in both Train_Set and Validation_Set, so results will be too good: 1 (first: 10-60-1280x720)",
    )
    assert not found.left_out


def test_archives_unpacked_into_folders_of_their_name_and_links(tree):
    before = {clip.id: clip for clip in scan_affwild2(tree).clips}
    (tree / "cropped_aligned").rename(tree / "inner")
    (tree / "cropped_aligned_2").mkdir()
    (tree / "inner").rename(tree / "cropped_aligned_2/cropped_aligned")
    (tree / "batch1/up").symlink_to(tree, target_is_directory=True)
    after = scan_affwild2(tree)
    assert {clip.id for clip in after.clips} == set(before)
    assert all(clip.crops == tree / "cropped_aligned_2/cropped_aligned" / clip.id for clip in after.clips)
    assert not any("not used" in note for note in after.notes)


def test_crops_of_unannotated_faces_are_reported(tree):
    (tree / "cropped_aligned" / "test_video").mkdir()
    assert any("crops of 1 faces without annotations (first: test_video)" in note for note in scan_affwild2(tree).notes)
