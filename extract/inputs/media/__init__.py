"""Decoding: video frames and mono sound, each with its time on the clip's presentation clock.

Times are what the container says (``pts * time_base``), unshifted: a stream that begins at 0.5 s begins at 0.5 s, and
audio and video each keep their own start. Both readers stream; memory holds one decoded frame, or the samples asked
for, however long the clip. Each clip is decoded by a single thread: engines work on several clips at once, and neither
the order of errors nor a value can depend on the machine's number of cores.

* ``video``: frames and their times, of which ``frame_times`` repairs the bad ones; ``picture`` turns a frame into RGB;
* ``audio``: sound, placed on the clock by ``sound_times``, resampled and held by ``samples``;
* ``decoding``: what both share, opening a file and reading its packets; ``file_ends`` finds files that end early;
* ``span``: the part of the recording that belongs to the clip.
"""

from extract.inputs.media.audio import read_audio
from extract.inputs.media.decoding import Watcher
from extract.inputs.media.frame_times import repair_times
from extract.inputs.media.samples import Audio, Sound
from extract.inputs.media.video import DRAWN, Video, VideoFrame, open_video

__all__ = ["DRAWN", "Audio", "Sound", "Video", "VideoFrame", "Watcher", "open_video", "read_audio", "repair_times"]
