"""``extract demo``: which clips go where, and what is drawn."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from extract.demo.clips import demo_clips, write_demo
from extract.inputs.manifest import write_manifest

MANIFEST = Path("data_manifest.yaml")
COMMENT = """\
The demo's clips: drawn by `extract demo`, people and labels included. A manifest lists recordings:

  id       name of the clip everywhere, and of its folder in the store
  video    the movie, relative to this file (its sound is used too; `audio:` names another file)
  transcript   words with times: .csv (word,start_s,end_s), .srt, .vtt, .json of Whisper
  labels   au: one row per frame, a column per action unit, 0, 1 or -1 (not annotated); expr: expressions
  subject  who is seen: nobody may be in two splits
  split    train, val or test; leave it out for clips without labels

Also known: source_video, crops (with fps), face: largest|left|right|none, start_s, end_s, language. See README.md."""


@dataclass(frozen=True)
class Made:
    """What ``make_demo`` did."""

    clips: Path
    """Folder of the movies."""
    manifest: Path
    drawn: int
    there: int
    """Clips that were there already."""


def make_demo(seed: int, out: Path | None, say: Callable[[str], None]) -> Made:
    """Draw what is missing of one seed's clips and describe them in a manifest.

    Seed 0 belongs into ``demo/clips``, described by ``data_manifest.yaml`` beside it; another seed, or another folder,
    has its manifest among its own files.
    """
    default = seed == 0 and out is None
    home = out or (Path("demo") if seed == 0 else Path("demo") / f"seed_{seed}")
    clips, manifest = home / "clips", MANIFEST if default else home / "manifest.yaml"
    drawn = write_demo(clips, seed, say)
    listed = demo_clips(clips.absolute())
    if not manifest.is_file():
        write_manifest(manifest, listed, COMMENT)
    return Made(clips, manifest, drawn, len(listed) - drawn)
