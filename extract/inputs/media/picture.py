"""From a decoded frame to an upright RGB picture."""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from av.sidedata.sidedata import SideDataContainer
from av.sidedata.sidedata import Type as SideDataType
from av.video.frame import VideoFrame as DecodedFrame
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray


@dataclass(frozen=True)
class Turn:
    """How a decoded picture becomes upright: transposed first, then mirrored along either axis."""

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False

    @classmethod
    def of(cls, frame: DecodedFrame) -> "Turn":
        """From the display matrix [a b u; c d v; x y w]: a pixel (p, q) is shown at (a p + c q, b p + d q).

        Angles between quarter turns, which no camera writes, are rounded to the nearest one.
        """
        try:
            # Not frame.side_data: the frame would keep it and it keeps the frame, so that every frame waits for the
            # garbage collector; of large frames those are gigabytes (tests/test_large_frames.py).
            data = cast(Any, SideDataContainer)(frame).get(SideDataType.DISPLAYMATRIX)
        except ValueError:  # PyAV 18 lists no side data at all if one kind is unknown to it (a photograph's EXIF)
            clockwise = round(-frame.rotation / 90) % 4
            return cls(transpose=clockwise % 2 == 1, flip_x=clockwise in {1, 2}, flip_y=clockwise in {2, 3})
        if data is None:
            return cls()
        a, b, _, c, d = np.frombuffer(data, dtype=np.int32, count=5).tolist()  # ISO/IEC 14496-12, 6.2.2
        if abs(b) > abs(a):
            return cls(transpose=True, flip_x=c < 0, flip_y=b < 0)
        return cls(flip_x=a < 0, flip_y=d < 0)

    @property
    def mirrored(self) -> bool:
        """Whether left and right change sides."""
        return self.transpose ^ self.flip_x ^ self.flip_y

    @property
    def clockwise_deg(self) -> int:
        """The rotation; of a mirrored picture, the rotation before it is mirrored left to right."""
        flip_x = self.flip_x ^ self.mirrored
        if self.transpose:
            return 90 if flip_x else 270
        return 180 if flip_x else 0

    def size_of(self, frame: DecodedFrame) -> tuple[int, int]:
        """Height and width of the upright picture."""
        return (frame.width, frame.height) if self.transpose else (frame.height, frame.width)

    def apply(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A view of ``image`` [H, W, 3]."""
        if self.transpose:
            image = image.transpose(1, 0, 2)
        return image[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1]


def upright_rgb(frame: DecodedFrame, reformatter: VideoReformatter) -> NDArray[np.uint8]:
    """RGB [H, W, 3] in memory of its own.

    Matrix and range are the stream's, flags libswscale's defaults, so pixels equal ``ffmpeg -pix_fmt rgb24``; without
    ``threads=1`` PyAV starts one thread per core for every frame.
    """
    rgb = reformatter.reformat(frame, format="rgb24", interpolation=Interpolation.BICUBIC, threads=1)
    # PyAV's array has padded rows in FFmpeg's memory: dlib misreads it, and a later frame may overwrite it.
    view: NDArray[np.uint8] = np.asarray(rgb.to_ndarray(), dtype=np.uint8)
    return np.array(Turn.of(frame).apply(view), order="C", copy=True)
