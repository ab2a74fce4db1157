"""Peak memory of ``extract run`` on a clip and on the same clip many times as long: it must not follow the length.

    python -m benchmarks.memory CLIP [--times 10] [--stage ghfeat] [-c CONFIG] [--set A.B=C ...]

Each run is a process of its own; the longer clip repeats the packets of the first.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import av

from extract.inputs.manifest import Clip, write_manifest
from extract.store import Store


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", type=Path)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--stage", default="ghfeat")
    parser.add_argument("-c", "--config")
    parser.add_argument("--set", action="append", default=[])
    asked = parser.parse_args()
    flags = [f"--stage={asked.stage}", *(f"--set={text}" for text in asked.set)]
    flags += ["-c", asked.config] if asked.config else []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        longer = repeat(asked.clip, asked.times, folder / "longer.mkv")
        peaks = [
            peak_mb(clip, folder / label, asked.stage, flags) for label, clip in (("a", asked.clip), ("b", longer))
        ]
    print(f"{asked.times} times the frames: {peaks[1] - peaks[0]:+.0f} MB ({peaks[1] / peaks[0] - 1:+.1%})")
    return 0


def repeat(clip: Path, times: int, out: Path) -> Path:
    """The pictures of ``clip``, ``times`` one after the other, without encoding them again."""
    with av.open(clip) as source, av.open(out, "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        packets = [(packet, packet.pts or 0, packet.dts or 0) for packet in source.demux(stream) if packet.size]
        shown = [pts for _, pts, _ in packets]
        length = max(shown) - min(shown) + (packets[0][0].duration or 1)
        for turn in range(times):
            for packet, pts, dts in packets:
                again = av.Packet(bytes(packet))
                again.pts, again.dts = pts + turn * length, dts + turn * length
                again.duration, again.time_base, again.is_keyframe = (
                    packet.duration,
                    packet.time_base,
                    packet.is_keyframe,
                )
                again.stream = copy
                target.mux(again)
    return out


def peak_mb(clip: Path, folder: Path, stage: str, flags: list[str]) -> float:
    """Of one run in a process of its own; what it computed and left on the disk is returned."""
    folder.mkdir()
    write_manifest(folder / "m.yaml", [Clip(id="clip", video=clip.resolve())], "for a measurement")
    command = [sys.executable, "-m", "extract.cli", "run", "--manifest", "m.yaml", "--store", "s.zarr", "-q", *flags]
    process = subprocess.Popen(command, cwd=folder)
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"the run on {clip} ended with {os.waitstatus_to_exitcode(status)}")
    rows = Store.open(folder / "s.zarr").record("clip", stage)
    pictures = [path for path in folder.rglob("*") if path.suffix.lower() in {".png", ".jpg", ".jpeg", ".bmp"}]
    peak = usage.ru_maxrss / 1024
    print(f"{rows.rows if rows else 0} frames: peak {peak:,.0f} MB; picture files left: {len(pictures)}", flush=True)
    return peak


if __name__ == "__main__":
    sys.exit(main())
