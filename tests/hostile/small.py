"""100 broken small files: manifests, configs, labels, transcripts, weights. Text that users and attackers may write.

Each case states with which exit codes the command may end. Labels and transcripts are files of clips, so one command
takes many; manifests, configs and weights have a command each.
"""

import json
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

VIDEO = "clip.mp4"
"""A real clip beside the cases' files, of ``FRAMES`` frames."""
FRAMES = 72
MARK = "was-run"
"""A file that only code hidden in another file would make."""

ZERO = "/dev/zero"

Build = Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    """One broken file and how it is given to the program."""

    name: str
    kind: str
    file: str
    build: Build
    """Writes the file to the path that it is given."""
    codes: frozenset[int]
    """Exit codes that are true."""


def _text(text: str) -> Build:
    return lambda path: _write(path, text.encode())


def _raw(data: bytes) -> Build:
    return lambda path: _write(path, data)


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _folder(path: Path) -> None:
    path.mkdir()


def _link(target: str) -> Build:
    return lambda path: path.symlink_to(target)


def _cases(kind: str, suffix: str, files: Mapping[str, Build], codes: Iterable[int]) -> list[Case]:
    return [
        Case(
            f"{kind}-{name}",
            kind,
            f"{kind}-{name}{'' if '.' in name else suffix}",
            build,
            frozenset(_CODES.get(f"{kind}-{name}", codes)),
        )
        for name, build in files.items()
    ]


# ---- YAML ----------------------------------------------------------------------------------------------------------


def _bomb(key: str) -> str:
    """Ten names, each of ten of the one before: 10^9 values when they are written out."""
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x,x]"]
    lines += [f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    return "\n".join([*lines, f"{key}: *a8", ""])


def _deep(key: str, depth: int) -> str:
    return f"{key}: {'[' * depth}{']' * depth}\n"


def _merged(key: str) -> str:
    """Merge keys that double at every step: 2^40 pairs."""
    lines = ["m0: &m0 {k: v}"]
    lines += [f"m{i}: &m{i} {{<<: [*m{i - 1}, *m{i - 1}]}}" for i in range(1, 40)]
    return "\n".join([*lines, f"{key}: {{<<: *m39}}", ""])


_CODE = f"!!python/object/apply:os.system ['touch {MARK}']"
_HEAD = "version: 1\nclips:\n"

MANIFESTS = {
    "empty": _text(""),
    "bomb": _text(_HEAD.replace("clips:\n", "") + _bomb("clips")),
    "bomb-in-a-clip": _text(_bomb("x") + _HEAD + f"- {{id: a, video: {VIDEO}, labels: *a8}}\n"),
    "deep": _text("version: 1\n" + _deep("clips", 100_000)),
    "deep-mappings": _text("version: 1\nclips: " + "{a: " * 50_000 + "}" * 50_000),
    "merged": _text("version: 1\n" + _merged("clips")),
    "itself": _text("version: 1\nclips: &c [*c]\n"),
    "code": _text(f"version: 1\nclips: {_CODE}\n"),
    "code-in-an-id": _text(_HEAD + f"- {{id: {_CODE}, video: {VIDEO}}}\n"),
    "latin-1": _raw(_HEAD.encode() + "- {id: a, video: café.mp4}\n".encode("latin-1")),
    "utf-16": _raw((_HEAD + f"- {{id: a, video: {VIDEO}}}\n").encode("utf-16")),
    "nul": _raw((_HEAD + f"- {{id: a, video: {VIDEO}}}\n").replace("a,", "a\0b,").encode()),
    "nul-escaped": _text(_HEAD + f'- {{id: a, video: "{VIDEO}\\0"}}\n'),
    "surrogate": _text(_HEAD + '- {id: a, video: "\\ud800.mp4"}\n'),
    "same-ids": _text(_HEAD + f"- {{id: a, video: {VIDEO}}}\n- {{id: A, video: {VIDEO}}}\n"),
    "ids-are-paths": _text(_HEAD + f"- {{id: ../../x, video: {VIDEO}}}\n- {{id: /etc, video: {VIDEO}}}\n"),
    "types": _text("version: [1]\nclips: {id: a}\n"),
    "types-in-a-clip": _text(_HEAD + "- {id: [a], video: {a: b}, fps: x, face: [left], labels: 3, start_s: .inf}\n"),
    "unknown-key": _text(_HEAD + f"- {{id: a, video: {VIDEO}, {'k' * 100_000}: 1}}\n"),
    "no-yaml": _text("<xml>\t@`%</xml>\n{[" * 50),
    "two-documents": _text(_HEAD + f"- {{id: a, video: {VIDEO}}}\n---\n" + _HEAD),
    "folder": _folder,
    "pipe": os.mkfifo,
    "endless": _link(ZERO),
    "many-problems": _text(_HEAD + "- {id: a b, video: 1, x: y}\n" * 5000),
}

_HUBERT = "extract: {{instances: {{hubert: {{weights: random, architecture: small, {0}}}}}}}\n"

CONFIGS = {
    "unknown-section": _text("extrakt: {}\n"),
    "unknown-key": _text("extract: {instances: {frames: {}}, rum: {}}\n"),
    "unknown-setting": _text(_HUBERT.format("layers: 2")),
    "wrong-type": _text(_HUBERT.format("layer: {a: b}")),
    "out-of-range": _text(_HUBERT.format("layer: 99999999999999999999999")),
    "infinite": _text("extract: {instances: {detections: {score_threshold: .nan}}, run: {memory_gb: .inf}}\n"),
    "instance-is-a-path": _text("extract: {instances: {../x: {stage: frames}}}\n"),
    "instance-is-absolute": _text("extract: {instances: {/x: {stage: frames}}}\n"),
    "instance-is-a-number": _text("extract: {instances: {1: {stage: frames}, null: {}, [a, b]: {}}}\n"),
    "instances-are-a-list": _text("extract: {instances: [frames, faces]}\n"),
    "circle": _text(
        "extract:\n  instances:\n    a: {stage: faces, inputs: {detections: b}}\n"
        "    b: {stage: faces, inputs: {detections: a}}\n"
    ),
    "no-such-stage": _text("extract: {instances: {a: {stage: os.system}}}\n"),
    "inputs-are-text": _text("extract: {instances: {faces: {inputs: detections}}}\n"),
    "bomb": _text(_bomb("extract")),
    "bomb-as-a-section": _text(_bomb("x").replace("x: *a8", "extract: {instances: *a8}")),
    "deep": _text(_deep("extract", 20_000)),
    "merged": _text(_merged("extract")),
    "itself": _text("extract: &e {instances: *e}\n"),
    "code": _text(f"extract: {_CODE}\n"),
    "utf-16": _raw("extract: {}\n".encode("utf-16")),
    "nul": _raw(b"extract: {instances: {fra\0mes: {}}}\n"),
    "a-date-as-a-key": _text("2026-01-01: {}\n"),
    "folder": _folder,
    "pipe": os.mkfifo,
    "endless": _link(ZERO),
}

# ---- labels and transcripts: files of clips ------------------------------------------------------------------------

_ROWS = "AU1,AU2\n" + "0,1\n" * FRAMES

LABELS = {
    "empty": _text(""),
    "header-alone": _text("AU1,AU2\n"),
    "short": _text("AU1\n" + "1\n" * 10),
    "long": _text("AU1\n" + "1\n" * 100_000),
    "floats": _text(_ROWS.replace("0,1", "0.5,1e400", 3)),
    "words": _text(_ROWS.replace("0,1", "nan,yes", 3)),
    "ragged": _text(_ROWS.replace("0,1\n", "0\n", 3)),
    "twice": _text(_ROWS.replace("AU1,AU2", "AU1,au01")),
    "no-au": _text(_ROWS.replace("AU1,AU2", "success,confidence")),
    "huge-number": _text(_ROWS.replace("AU2", "AU" + "9" * 50_000)),
    "latin-1": _raw(_ROWS.encode() + b"\xe9\xff"),
    "utf-16": _raw(_ROWS.encode("utf-16")),
    "nul": _raw(_ROWS.encode().replace(b"0,1", b"0\0,1", 3)),
    "one-line": _raw(b"AU1," * 300_000),
    "frames-jump": _text("frame,AU1\n" + "".join(f"{i * 2},1\n" for i in range(FRAMES))),
    "frames-in-words": _text("frame,AU1\n" + "".join(f"{i}²,1\n" for i in range(FRAMES))),
    "frames-of-5000-digits": _text("frame,AU1\n" + "".join(f"{'1' * 5000},1\n" for i in range(FRAMES))),
    "folder": _folder,
    "pipe": os.mkfifo,
    "endless": _link(ZERO),
}

_CUE = "1\n00:00:00,000 --> 00:00:01,000\nbin blue at f\n\n"

TRANSCRIPTS = {
    "empty.srt": _text(""),
    "no-times.srt": _text("1\nhello\n\n"),
    "negative.srt": _text(_CUE.replace("00:00:00,000", "-00:00:01,000")),
    "backwards.srt": _text(_CUE.replace("00:00:00,000", "00:00:09,000")),
    "huge-time.srt": _text(_CUE.replace("00:00:01", f"{'9' * 400}:00:01")),
    "5000-digits.srt": _text(_CUE.replace("00:00:01", f"{'9' * 5000}:00:01")),
    "half-a-cue.srt": _text(_CUE[:30]),
    "arrows.srt": _text("-->" * 100_000),
    "one-line.srt": _text(_CUE.replace("bin", "bin " * 500_000)),
    "angles.vtt": _text("WEBVTT\n\n00:00.000 --> 00:01.000\n" + "<" * 100_000 + "\n"),
    "braces.vtt": _text("WEBVTT\n\n00:00.000 --> 00:01.000\n" + "{\\" * 100_000 + "\n"),
    "inline-times.vtt": _text(
        "WEBVTT\n\n00:00.000 --> 00:01.000\n" + "a<00:00:00.500>" * 20_000 + "b<00:99:99.999>c\n"
    ),
    "entities.vtt": _text("WEBVTT\n\n00:00.000 --> 00:01.000\n&#0; &#x110000; &#xd800; &#99999999999999999999;\n"),
    "surrogate-entity.vtt": _text("WEBVTT\n\n00:00.000 --> 00:01.000\nword &#xD83D;\n"),
    "nul.vtt": _raw(b"WEBVTT\n\n00:00.000 --> 00:01.000\na\0b\n"),
    "latin-1.csv": _raw("word,start_s,end_s\ncafé,0,1\n".encode("latin-1")),
    "times.csv": _text("word,start_s,end_s\na,nan,inf\nb,1e400,-1\n"),
    "quote.csv": _text('word,start_s,end_s\n"a' + "b" * 200_000),
    "nul.csv": _raw(b"word,start_s,end_s\na\0,0,1\n"),
    "deep.json": _text("[" * 200_000),
    "deep-objects.json": _text('{"segments":' * 100_000),
    "types.json": _text('{"segments": [{"text": 3, "start": "x", "end": []}]}'),
    "infinite.json": _text('{"segments": [{"text": "a b", "start": NaN, "end": Infinity}]}'),
    "huge-number.json": _text('{"segments": [{"text": "a b", "start": 0, "end": 1' + "0" * 400 + "}]}"),
    "5000-digits.json": _text('{"segments": [{"text": "a b", "start": 0, "end": ' + "1" * 5000 + "}]}"),
    "surrogate.json": _text('{"segments": [{"text": "a \\ud800", "start": 0, "end": 1}]}'),
    "other-suffix.doc": _text("words"),
    "pipe.srt": os.mkfifo,
    "endless.csv": _link(ZERO),
    "folder.vtt": _folder,
}

# ---- weights -------------------------------------------------------------------------------------------------------


def _hubert() -> dict[str, Any]:
    from extract.models import hubert

    return dict(hubert.random_weights("small"))


def _safetensors(spoil: Callable[[bytearray], bytes | bytearray]) -> Build:
    def build(path: Path) -> None:
        from safetensors.numpy import save

        path.write_bytes(spoil(bytearray(save(_hubert()))))

    return build


def _header(edit: Callable[[dict[str, Any]], object]) -> Build:
    """The JSON header of a safetensors file, edited."""

    def spoil(data: bytearray) -> bytes:
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        edit(header)
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + bytes(data[8 + size :])

    return _safetensors(spoil)


def _flip(seed: int, number: int, first: int, stop: int) -> Callable[[bytearray], bytearray]:
    def spoil(data: bytearray) -> bytearray:
        rng = random.Random(seed)
        for _ in range(number):
            data[rng.randrange(first, min(stop, len(data)))] ^= 1 << rng.randrange(8)
        return data

    return spoil


def _offsets(first: int, stop: int) -> Callable[[dict[str, Any]], object]:
    return lambda header: next(v for k, v in header.items() if k != "__metadata__").update(data_offsets=[first, stop])


def _shape(shape: list[int]) -> Callable[[dict[str, Any]], object]:
    return lambda header: next(v for k, v in header.items() if k != "__metadata__").update(shape=shape)


class _Runs:
    """Its pickle calls ``os.system``."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {MARK}",)


def _torch_zip(payload: bytes) -> bytes:
    """What ``torch.save`` writes around a pickle."""
    whole = BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("archive/data.pkl", payload)
        archive.writestr("archive/version", "3\n")
    return whole.getvalue()


def _bombed(path: Path) -> None:
    """2 GB of zeros in 2 MB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("archive/data.pkl", "w", force_zip64=True) as member:
            for _ in range(2000):
                member.write(bytes(1_000_000))
        archive.writestr("archive/version", "3\n")


def _with_config(config: str) -> Build:
    def build(path: Path) -> None:
        from safetensors.numpy import save_file

        path.mkdir()
        save_file(_hubert(), path / "model.safetensors")
        (path / "config.json").write_text(config)

    return build


def _not_finite(path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({name: values * float("nan") for name, values in _hubert().items()}, path)


def _one_fewer(path: Path) -> None:
    from safetensors.numpy import save_file

    found = _hubert()
    del found[sorted(found)[0]]
    save_file(found, path)


WEIGHTS = {
    "cut.safetensors": _safetensors(lambda data: data[: len(data) // 2]),
    "flipped-header.safetensors": _safetensors(_flip(1, 20, 8, 2000)),
    "header-of-2-63-bytes.safetensors": _safetensors(lambda data: struct.pack("<Q", 2**63) + data[8:]),
    "offsets-beyond.safetensors": _header(_offsets(0, 2**40)),
    "offsets-backwards.safetensors": _header(_offsets(100, 0)),
    "huge-shape.safetensors": _header(_shape([2**31, 2**31, 2**31])),
    "not-finite.safetensors": _not_finite,
    "one-fewer.safetensors": _one_fewer,
    "empty.safetensors": _raw(b""),
    "code.pt": _raw(_torch_zip(pickle.dumps({"x": _Runs()}))),
    "code-unzipped.bin": _raw(pickle.dumps({"x": _Runs()}, protocol=2)),
    "code-named.safetensors": _raw(pickle.dumps(_Runs())),
    "bomb.pt": _bombed,
    "config-is-a-list": _with_config("[1, 2]"),
    "config-is-deep": _with_config("[" * 100_000),
    "folder": _folder,
    "pipe.safetensors": os.mkfifo,
    "endless.pt": _link(ZERO),
}

_CODES = {"weights-not-finite.safetensors": {1}}
"""Of single cases: weights that are not finite are weights, with which every clip fails."""


def cases() -> list[Case]:
    """All of them, in an order that never changes."""
    alone = _cases("manifest", ".yaml", MANIFESTS, {2}) + _cases("config", ".yaml", CONFIGS, {2})
    alone += _cases("weights", "", WEIGHTS, {3})
    clips = _cases("labels", ".csv", LABELS, {0, 1}) + _cases("transcript", "", TRANSCRIPTS, {0, 1})
    return alone + clips
