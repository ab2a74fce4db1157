"""Write what ffprobe says of the test clips' times to ``tests/golden/ffprobe``, or compare it with what lies there.

    python tools/ffprobe_golden.py --media ../shared/media           # write
    python tools/ffprobe_golden.py --media ../shared/media --check   # compare; exit 1 on a difference

The values stand outside of PyAV: another program, built and linked by other people, read the same files.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SUFFIXES = {".avi", ".flac", ".mkv", ".mov", ".mp3", ".mp4", ".mpg", ".wav", ".webm"}
GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden" / "ffprobe"


def ffprobe(path: Path, *arguments: str) -> dict[str, Any]:
    command = ["ffprobe", "-v", "error", "-of", "json", *arguments, str(path)]
    report: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return report


def frames_of(path: Path, stream_index: int, fields: str) -> list[dict[str, Any]]:
    frames: list[dict[str, Any]] = ffprobe(
        path, "-select_streams", str(stream_index), "-show_entries", f"frame={fields}"
    )["frames"]
    return frames


def describe(path: Path) -> dict[str, Any]:
    """All streams of one file; times as ffprobe prints them (seconds, six decimals), ``null`` where it has none."""
    entries = "stream=index,codec_type,codec_name,width,height,sample_rate,channels"
    streams = ffprobe(path, "-show_entries", entries)["streams"]
    for stream in streams:
        stream.pop("disposition", None)  # some versions print it unasked
        if stream["codec_type"] == "video":
            frames = frames_of(path, stream["index"], "best_effort_timestamp_time")
            stream["pts_time"] = [frame.get("best_effort_timestamp_time") for frame in frames]
        elif stream["codec_type"] == "audio":
            frames = frames_of(path, stream["index"], "best_effort_timestamp_time,nb_samples")
            stream["first_pts_time"] = frames[0].get("best_effort_timestamp_time")
            stream["num_samples"] = sum(frame["nb_samples"] for frame in frames)
    return {"file": path.name, "streams": streams}


def as_text(description: dict[str, Any]) -> str:
    """One line per stream: a changed time shows as one changed line, and 500 times do not fill 500 lines."""
    lines = ",\n".join(f"  {json.dumps(stream, sort_keys=True)}" for stream in description["streams"])
    return f'{{"file": {json.dumps(description["file"])}, "streams": [\n{lines}\n]}}\n'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--media", type=Path, required=True, help="folder of clips")
    parser.add_argument("--golden", type=Path, default=GOLDEN, help="folder of JSON files (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    arguments = parser.parse_args()
    clips = sorted(path for path in arguments.media.iterdir() if path.suffix in SUFFIXES)
    if not clips:
        print(f"{arguments.media}: no clip with one of the suffixes {' '.join(sorted(SUFFIXES))}", file=sys.stderr)
        return 1
    different = 0
    for clip in clips:
        golden = arguments.golden / f"{clip.name}.json"
        text = as_text(describe(clip))
        if not arguments.check:
            golden.parent.mkdir(parents=True, exist_ok=True)
            golden.write_text(text)
        elif not golden.exists():
            print(f"{golden}: missing; run without --check to write it", file=sys.stderr)
            different += 1
        elif golden.read_text() != text:
            print(f"{golden}: ffprobe now says otherwise of {clip.name}:\n{text}", file=sys.stderr)
            different += 1
    print(f"{len(clips)} clips, {different} different" if arguments.check else f"{len(clips)} clips written")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
