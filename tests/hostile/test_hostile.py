"""A seeded sample of the corpus: 30 damaged media files and ten broken small ones. `make fuzz` tries all."""

import os
import random
import subprocess
import sys
from collections import Counter

import pytest

from tests.conftest import ROOT
from tests.hostile import corpus, media, small, trial

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are watched in /proc")

SEED = 0
"""Another number tries other files in the suite; what it found before is found by `make fuzz`."""


def sample_of_media() -> list[int]:
    """30 numbers, each kind of damage among them."""
    rng = random.Random(SEED)
    of_kind: dict[str, list[int]] = {}
    for number in range(media.COUNT):
        of_kind.setdefault(media.kind_of(number)[0], []).append(number)
    chosen = {rng.choice(numbers) for numbers in of_kind.values()}
    return sorted(chosen | set(rng.sample(sorted(set(range(media.COUNT)) - chosen), 30 - len(chosen))))


def sample_of_cases() -> list[small.Case]:
    """One manifest, config and weights, three label files and four transcripts."""
    rng = random.Random(SEED)
    by_kind: dict[str, list[small.Case]] = {}
    for case in small.cases():
        if "bomb" not in case.name:  # making one takes seconds
            by_kind.setdefault(case.kind, []).append(case)
    numbers = {"manifest": 1, "config": 1, "weights": 1, "labels": 3, "transcript": 4}
    return [case for kind, number in numbers.items() for case in rng.sample(by_kind[kind], number)]


def broken(tally: trial.Tally) -> str:
    return "\n".join(map(str, tally.violations))


def test_damaged_media_give_results_or_reasons(media_dir, tmp_path):
    tally = trial.Tally()
    corpus.try_media(sample_of_media(), media_dir.resolve(), tmp_path / "media", tally)
    assert not tally.violations, broken(tally)
    assert tally.files.total() == 30
    assert tally.files["failed"] >= 4  # a folder, a loop, a pipe, a socket
    assert tally.files["done"] >= 5


def test_broken_labels_and_transcripts_fail_their_clip_alone(media_dir, tmp_path):
    tally = trial.Tally()
    cases = [case for case in sample_of_cases() if case.kind in {"labels", "transcript"}]
    corpus.try_clips(cases, media_dir.resolve(), tmp_path / "clips", tally)
    assert not tally.violations, broken(tally)
    assert tally.files.total() == len(cases) == 7
    assert tally.reasons["frames: done"] == 7


@pytest.mark.parametrize("kind", ["manifest", "config", "weights"])
def test_a_broken_manifest_config_or_weights_file_is_refused(media_dir, tmp_path, kind):
    tally = trial.Tally()
    (case,) = [case for case in sample_of_cases() if case.kind == kind]
    corpus.try_alone(case, media_dir.resolve(), tmp_path / kind, tally)
    assert not tally.violations, broken(tally)


# ---- the corpus itself ---------------------------------------------------------------------------------------------


def test_the_corpus_is_of_300_media_files_and_more_than_100_small_ones():
    assert media.COUNT == 300
    names = [case.name for case in small.cases()]
    assert len(names) == len({name.replace(".", "-") for name in names}) >= 100


def test_the_same_number_makes_the_same_file(media_dir, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    for number in range(0, media.COUNT - len(media.SPECIAL), 7):
        first, second = (media.make(number, media_dir, tmp_path / folder) for folder in ("a", "b"))
        assert first.description == second.description
        assert first.path.read_bytes() == second.path.read_bytes()


DIGEST = """
import hashlib, sys
from pathlib import Path
from tests.hostile import media
numbers = range(media.COUNT - len(media.SPECIAL))
files = [media.make(number, Path(sys.argv[1]), Path(sys.argv[2])).path.read_bytes() for number in numbers]
print(hashlib.sha256(b"".join(files)).hexdigest())
"""


def test_files_do_not_depend_on_the_order_of_sets(media_dir, tmp_path):
    """Which differs from process to process: a number that names a file must name it in the next run, too."""
    digests = set()
    for seed in ("1", "2"):
        (tmp_path / seed).mkdir()
        arguments = [sys.executable, "-c", DIGEST, str(media_dir), str(tmp_path / seed)]
        ended = subprocess.run(
            arguments, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        )
        digests.add(ended.stdout)
    assert len(digests) == 1


def test_files_are_damaged_and_differ_from_each_other(media_dir, tmp_path):
    files = [media.make(number, media_dir, tmp_path) for number in range(media.COUNT - len(media.SPECIAL))]
    originals = {(media_dir / name).read_bytes() for name in media.SOURCES}
    spoilt = [file.path.read_bytes() for file in files if file.kind != "other_type"]
    assert not originals & set(spoilt)
    assert len(set(spoilt)) > 0.97 * len(spoilt)
    assert min(Counter(file.kind for file in files).values()) >= 10


def test_boxes_of_an_mp4_are_found(media_dir):
    found = [box.kind for box in media.boxes((media_dir / "one_face.mp4").read_bytes())]
    assert found[0] == b"ftyp"
    assert {b"moov", b"mvhd", b"trak", b"tkhd", b"elst", b"mdhd", b"stts", b"ctts", b"stsz", b"stsc"} <= set(found)


# ---- the judge: what it must notice --------------------------------------------------------------------------------


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os; os.kill(os.getpid(), 11)", "exit code -11"),
        ("raise ValueError", "a traceback"),
        ("import sys; sys.exit(2)", "exit code 2 without a line"),
        ("import sys; print('extract: a bug in au-fusion', file=sys.stderr); sys.exit(70)", "exit code 70"),
        ("import time; time.sleep(60)", "no end after 2 s"),
        ("a = b'x' * 10**9; import time; time.sleep(60)", "memory of"),
        ("import subprocess, sys; subprocess.run([sys.executable, '-c', 'a = b\"x\" * 10**9; input()'])", "memory of"),
    ],
)
def test_a_command_that_lies_dies_hangs_or_grows_is_noticed(tmp_path, code, message):
    (tmp_path / "work").mkdir()
    ended = trial.watched(python(code), tmp_path / "work", longest_s=2, most_bytes=500_000_000)
    assert message in "; ".join(violation.message for violation in trial.judge_words(ended, "it"))


def test_a_good_command_is_not_blamed(tmp_path):
    (tmp_path / "work").mkdir()
    ended = trial.watched(python("print('{}')"), tmp_path / "work")
    assert (trial.judge_words(ended, "it"), ended.report) == ([], {})


def test_files_made_removed_and_changed_are_noticed(tmp_path):
    for name in ("kept", "removed", "changed"):
        (tmp_path / name).write_text(name)
    (tmp_path / "store").mkdir()
    before = trial.left_as_it_was(tmp_path, [tmp_path / "store"])
    (tmp_path / "store" / "zarr.json").write_text("{}")
    (tmp_path / "removed").unlink()
    (tmp_path / "changed").write_text("longer")
    (tmp_path / "made").write_text("")
    found = trial.changes(before, trial.left_as_it_was(tmp_path, [tmp_path / "store"]), "it")
    messages = [violation.message.removeprefix(f"{tmp_path}/") for violation in found]
    assert messages == ["changed was changed", "made was made", "removed was removed"]
