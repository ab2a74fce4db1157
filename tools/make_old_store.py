"""Make ``tests/golden/made_at_a53b87f.tar.xz``: a small store and fitted runs, written by the program as it was then.

    git worktree add --detach ../old a53b87f
    python tools/make_old_store.py ../old
    git worktree remove ../old

``tests/test_made_before.py`` shows that today's code accepts them as its own. The file was made once and is kept as it
is. Made again, it has other times and run names, and the values of whatever library versions are installed then.

What is in it::

    config.yaml  manifest.yaml  media/     seven clips, drawn here; every path is relative
    store.zarr                             everything that can be had without weights, finished
    cut.zarr                               the same of one clip, stopped while it was being computed
    runs/whole  runs/cut                   a finished fit; the same one, stopped after its first epoch
    predicted/b.csv  predicted/b.json      predictions of runs/whole for media/b.mp4
    printed/*.json                         output of ``extract plan``, ``extract status``, ``fusion evaluate``
"""

import argparse
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import skimage.data
from numpy.typing import NDArray
from PIL import Image

COMMIT = "a53b87f"
GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden" / f"made_at_{COMMIT}.tar.xz"
FPS, SIDE_PX, SOUND_HZ = 25, 192, 16_000
MADE_AT_S = 1_700_000_000
"""Modification time of every file of ``media``: whole seconds survive packing, so that the store's hashes are believed
instead of made again, as on the machine where the store was made."""
DRAWN = "drawn, not recorded: tools/make_old_store.py"

Picture = NDArray[np.uint8]

CONFIG = """\
extract:
  run: {block_rows: 4}
  instances:
    labels: {label_slack: 1}
    detections: {max_faces: 2}
    crop: {}
    superres: {weights: lanczos, outscale: 1.5, keep: [box, valid]}
    landmarks: {}
    align: {output_size: 64, transform_size: 256}
    ghfeat: {weights: random, architecture: small}
    swin: {weights: random, architecture: small, resize: 64, crop: 64, normalise: per_image}
    swin_tokens: {stage: swin, weights: random, architecture: small, resize: 72, crop: 64, output: tokens}
    hubert: {weights: random, architecture: small}
    hubert_first: {stage: hubert, weights: random, architecture: small, layer: 1, normalise: false, dtype: float32}
    transcribe: {}
    roberta: {weights: random, architecture: small, before_s: 0.1, after_s: 0.1}
fusion:
  modalities:
    landmarks: {kind: frame, instance: landmarks, array: point, project: 8}
    motion: {kind: context, instance: landmarks, array: point, before: 2, after: 2, project: 8}
    swin: {kind: frame, instance: swin, array: feature, project: 8}
    ghfeat: {kind: frame, instance: ghfeat, array: code, project: 8}
    hubert: {kind: steps, instance: hubert, array: feature, before_s: 0.1, after_s: 0.1, project: 8}
    roberta: {kind: tokens, instance: roberta, array: token, project: 8}
  model: {hidden: 8, head: 16}
  training: {max_epochs: 2, min_epoch_steps: 4, batch: 16}
"""

MANIFEST = """\
version: 1
clips:
- {id: a, video: media/a.mp4, transcript: media/a.words.csv, labels: {au: media/a.au.csv, expr: media/a.expr.txt},
   subject: P1, split: train}
- {id: part, video: media/a.mp4, transcript: media/a.words.csv, labels: {au: media/part.au.csv}, subject: P1,
   source_video: a, split: train, start_s: 0.1, end_s: 0.27}
- {id: given, crops: media/given, fps: 25, audio: media/given.wav, labels: {au: media/given.au.csv}, subject: P2,
   split: train}
- {id: b, video: media/b.mp4, transcript: media/b.srt, labels: {au: media/b.au.csv}, subject: P3, split: val}
- {id: c, video: media/c.mp4, labels: {au: media/c.au.csv}, subject: P4, split: test, face: left}
- {id: empty, video: media/empty.mp4, transcript: media/empty.json, labels: {au: media/empty.au.csv}, subject: P5,
   split: test}
- {id: sound, audio: media/given.wav}
"""

# A signal would arrive at a moment of its own choosing; this stops at the same place every time.
STOPPED = """\
import sys
from {module} import {owner}
from {program}.cli import main
kept, left = {owner}.{method}, [{calls}]
def stopping(self, *arguments):
    kept(self, *arguments)
    left[0] -= 1
    if left[0] == 0:
        raise KeyboardInterrupt
{owner}.{method} = stopping
main()
"""


class OldProgram:
    """The commands of the checkout, run in ``folder``."""

    def __init__(self, checkout: Path, folder: Path, cache: Path) -> None:
        self._folder = folder
        self._environment = os.environ | {
            "PYTHONPATH": str(checkout.resolve()),
            "AU_FUSION_CACHE": str(cache),
            "OMP_NUM_THREADS": "1",
        }

    def check(self, checkout: Path) -> None:
        """Stop unless it is that commit, unchanged, and what Python imports."""
        found = subprocess.run(
            ["git", "-C", checkout, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        if not found.startswith(COMMIT):
            raise SystemExit(f"{checkout}: found commit {found[:7]}, expected {COMMIT}")
        subprocess.run(["git", "-C", checkout, "diff", "--quiet", "HEAD"], check=True)
        imported = self._python("import extract, fusion; print(extract.__file__, fusion.__file__)").split()
        if not all(Path(path).is_relative_to(checkout.resolve()) for path in imported):
            raise SystemExit(f"{' '.join(imported)} would run, expected those of {checkout.resolve()}")

    def __call__(self, program: str, *arguments: str) -> str:
        """Standard output of ``extract ...`` or ``fusion ...``."""
        print(f"$ {program} {' '.join(arguments)}", flush=True)
        return self._python(f"from {program}.cli import main; main()", *arguments)

    def stopped(self, program: str, *arguments: str, module: str, method: str, calls: int) -> None:
        """The same, interrupted once ``method`` (``Class.method``) of ``module`` was called so often."""
        owner, _, name = method.partition(".")
        print(f"$ {program} {' '.join(arguments)}   (stopped after {calls} x {method})", flush=True)
        code = STOPPED.format(module=module, owner=owner, method=name, program=program, calls=calls)
        self._python(code, *arguments, expected=130)

    def _python(self, code: str, *arguments: str, expected: int = 0) -> str:
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(
            command, cwd=self._folder, env=self._environment, stdout=subprocess.PIPE, text=True, check=False
        )
        if done.returncode != expected:
            raise SystemExit(f"exit {done.returncode}, expected {expected}")
        return done.stdout


# ---- media ----------------------------------------------------------------------------------------------------------


def faces(num_frames: int, seed: int) -> list[Picture]:
    """A face that moves: RGB [192, 192, 3] each, of the public-domain portrait that the demo is drawn from."""
    portrait = skimage.data.astronaut()  # type: ignore[no-untyped-call]
    random = np.random.default_rng(seed)
    phase, gain = random.uniform(0, 2 * np.pi, 3), random.uniform(0.8, 1.1)
    drawn = []
    for index in range(num_frames):
        swing = np.sin(2 * np.pi * index / 20 + phase)
        turn = cv2.getRotationMatrix2D((223.0, 115.0), 4 * swing[0], 1.05 + 0.05 * swing[1])
        turn[:, 2] += np.array([SIDE_PX / 2 - 223.0 + 5 * swing[2], SIDE_PX / 2 - 115.0])
        moved = cv2.warpAffine(portrait, turn, (SIDE_PX, SIDE_PX), flags=cv2.INTER_LINEAR)
        moved = moved[:, ::-1] if seed % 2 else moved
        drawn.append(np.clip(np.rint(gain * moved.astype(np.float64)), 0, 255).astype(np.uint8))
    return drawn


def stripes() -> list[Picture]:
    """Pictures without a face."""
    ramp = np.add.outer(np.arange(48), np.arange(64))
    return [np.repeat(((ramp * 3 + 8 * i) % 256).astype(np.uint8)[:, :, None], 3, axis=2) for i in range(4)]


def voice(num_samples: int, seed: int) -> NDArray[np.float32]:
    """Something to hear: float32 [n] in [-1, 1]."""
    random = np.random.default_rng(seed)
    at = np.arange(num_samples) / SOUND_HZ
    tones = sum(np.sin(2 * np.pi * hz * at) / (1 + k) for k, hz in enumerate(random.uniform(100, 3000, 5)))
    loud = 0.5 + 0.5 * np.sin(2 * np.pi * 3 * at)
    return np.asarray(0.15 * loud * tones + 0.01 * random.standard_normal(num_samples), np.float32)


def write_movie(path: Path, pictures: list[Picture], seed: int) -> None:
    """H.264 and AAC, which every build of FFmpeg decodes to the same pictures."""
    with av.open(path, "w") as container:
        container.metadata["comment"] = DRAWN
        video = container.add_stream("libx264", rate=FPS)
        video.height, video.width = pictures[0].shape[:2]
        video.pix_fmt = "yuv420p"
        video.codec_context.thread_count = 1
        video.options = {"crf": "28", "preset": "veryslow"}
        audio = container.add_stream("aac", rate=SOUND_HZ, layout="mono")
        audio.bit_rate = 32_000
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        sound = voice(len(pictures) * SOUND_HZ // FPS, seed)
        for start in range(0, len(sound), 1024):
            heard = av.AudioFrame.from_ndarray(sound[None, start : start + 1024], format="fltp", layout="mono")
            heard.sample_rate, heard.pts, heard.time_base = SOUND_HZ, start, Fraction(1, SOUND_HZ)
            container.mux(audio.encode(heard))
        container.mux(audio.encode())


def write_wav(path: Path, sound: NDArray[np.float32]) -> None:
    with av.open(path, "w") as container:
        audio = container.add_stream("pcm_s16le", rate=SOUND_HZ, layout="mono")
        heard = av.AudioFrame.from_ndarray(np.rint(sound[None] * 32767).astype(np.int16), format="s16", layout="mono")
        heard.sample_rate, heard.pts, heard.time_base = SOUND_HZ, 0, Fraction(1, SOUND_HZ)
        container.mux(audio.encode(heard))
        container.mux(audio.encode())


def au_table(num_frames: int, seed: int) -> str:
    """Labels that change every few frames, one of them not annotated."""
    random = np.random.default_rng([seed, 1])
    rows = np.repeat(random.integers(0, 2, (-(-num_frames // 4), 12)), 4, axis=0)[:num_frames]
    rows[0, seed % 12] = -1
    header = ",".join(f"AU{au}" for au in (1, 2, 4, 6, 7, 10, 12, 15, 23, 24, 25, 26))
    return "\n".join([header, *(",".join(map(str, row)) for row in rows.tolist())]) + "\n"


def draw_media(folder: Path) -> None:
    """The clips of MANIFEST, with words and labels."""
    (folder / "given").mkdir(parents=True)
    for seed, (name, num_frames) in enumerate({"a": 9, "b": 6, "c": 6}.items()):
        write_movie(folder / f"{name}.mp4", faces(num_frames, seed), seed)
        (folder / f"{name}.au.csv").write_text(au_table(num_frames, seed))
    write_movie(folder / "empty.mp4", stripes(), 3)
    (folder / "empty.json").write_text('{"segments": []}\n')
    for name, num_frames, seed in (("part", 4, 4), ("given", 5, 5), ("empty", 4, 6)):
        (folder / f"{name}.au.csv").write_text(au_table(num_frames, seed))
    expressions = "Neutral,Anger,Disgust,Fear,Happiness,Sadness,Surprise,Other\n"
    (folder / "a.expr.txt").write_text(expressions + "0\n" * 4 + "4\n" * 4)  # a row short: within label_slack
    (folder / "a.words.csv").write_text("word,start_s,end_s\nbin,0.04,0.12\nblue,0.16,0.3\n")
    (folder / "b.srt").write_text("1\n00:00:00,050 --> 00:00:00,150\nsome words here\n")
    for index, picture in enumerate(faces(5, 7)):
        if index != 3:  # a frame without a face
            crop = cv2.resize(picture[40:152, 40:152], (112, 112), interpolation=cv2.INTER_AREA)
            Image.fromarray(crop).save(folder / "given" / f"{index + 1:05}.jpg", quality=80)
    write_wav(folder / "given.wav", voice(5 * SOUND_HZ // FPS, 5))
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (MADE_AT_S, MADE_AT_S))


# ---- store, runs, file ----------------------------------------------------------------------------------------------


def make(folder: Path, run: OldProgram) -> None:
    """Fill ``folder`` by the old program."""
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "manifest.yaml").write_text(MANIFEST)
    draw_media(folder / "media")
    of_clips = ("-c", "config.yaml", "--manifest", "manifest.yaml", "--device", "cpu")
    run("extract", "run", *of_clips, "--store", "store.zarr")
    one = ("--clip", "a", "--stage", "swin", "--stage", "ghfeat", "--stage", "roberta")
    run.stopped(
        "extract", "run", *of_clips, "--store", "cut.zarr", *one,
        module="extract.store", method="BlockWriter.commit", calls=14,
    )  # fmt: skip
    of_runs = ("--features", "store.zarr", "--device", "cpu")
    run("fusion", "fit", *of_runs, "-c", "config.yaml", "-o", "runs/whole")
    run.stopped(
        "fusion", "fit", *of_runs, "-c", "config.yaml", "-o", "runs/cut",
        module="fusion.runs", method="Run.save_log", calls=1,
    )  # fmt: skip
    run("fusion", "predict", "media/b.mp4", "--run", "runs/whole", "-o", "predicted", "--device", "cpu")
    printed = {
        "plan": run("extract", "plan", *of_clips, "--store", "store.zarr", "--json"),
        "status": run("extract", "status", "--store", "store.zarr", "--json"),
        "evaluate": run("fusion", "evaluate", *of_runs, "--run", "runs/whole", "--split", "test", "--json"),
    }
    (folder / "printed").mkdir()
    for name, text in printed.items():
        (folder / "printed" / f"{name}.json").write_text(text)


def refuse_paths(folder: Path, forbidden: list[bytes]) -> None:
    """Stop where a file holds a path of this machine."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and any(word in path.read_bytes() for word in forbidden):
            raise SystemExit(f"{path}: holds one of {forbidden}")


def pack(folder: Path, path: Path) -> None:
    """Everything below ``folder``, in order and nobody's."""

    def nobodys(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        entry.mode = 0o755 if entry.isdir() else 0o644
        entry.mtime = int(entry.mtime)
        return entry

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz", format=tarfile.PAX_FORMAT, preset=9) as archive:
        for name in sorted(path.name for path in folder.iterdir()):
            archive.add(folder / name, name, filter=nobodys)
    path.write_bytes(buffer.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help=f"a checkout of {COMMIT}")
    parser.add_argument(
        "-o", "--output", dest="out", type=Path, default=GOLDEN, help="file to write (default: tests/golden/...)"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder, cache = Path(temporary) / "made", Path(temporary) / "cache"
        folder.mkdir()
        program = OldProgram(arguments.checkout, folder, cache)
        program.check(arguments.checkout)
        make(folder, program)
        refuse_paths(folder, [os.fsencode(place) for place in (temporary, Path.home(), arguments.checkout.resolve())])
        pack(folder, arguments.out)
    print(f"{arguments.out}: {arguments.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
