"""Face crops given with a clip: a folder of pictures named by frame number, like Aff-Wild2's ``cropped_aligned``.

``00001.jpg`` belongs to the first frame. A number without a picture is a frame without a face. Files that are not
numbered pictures are skipped and counted.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from extract.errors import ClipError
from extract.inputs.media import VideoFrame

SIZE_PX = 112
"""Side of a crop, given or computed: that of `cropped_aligned`."""

SUFFIXES = (".jpg", ".jpeg", ".png")
MOST_FRAMES = 10_000_000
"""No video has more (four days at 30 per second): a name such as ``1699999999.jpg`` numbers something else."""
LONE_FRAME_S = 1 / 30
"""Assumed duration of the only frame of a movie."""


class Pictures(Protocol):
    """What the runner decodes: a movie, or what takes its place."""

    notes: dict[str, Any]
    declared_frames: int | None

    def frames(self, wanted: Callable[[int], bool] | None = None) -> Iterator[VideoFrame]:
        """Every frame in order, pixels only where ``wanted(index)``; it is called for each: the pass relies on it."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True)
class CropFolder:
    """The pictures of a folder."""

    path: Path
    by_frame: dict[int, str]
    """Row on the frame clock (the picture's number - 1) -> file name."""
    left_out: int
    """Number of files that are no numbered pictures."""

    @property
    def num_frames(self) -> int:
        """Rows up to the last picture."""
        return max(self.by_frame, default=-1) + 1


def list_crops(path: Path) -> CropFolder:
    """List a folder of crops; no picture is opened.

    Raises:
        ClipError: ``missing_file``, ``unreadable``, or ``bad_crops``: two files of the same number, or a number that
            no frame has.
    """
    try:
        names = sorted(entry.name for entry in os.scandir(path))
    except FileNotFoundError:
        raise ClipError("missing_file", f"{path}: no such folder of crops; is the path right?") from None
    except OSError as error:
        raise ClipError("unreadable", f"{path}: {error.strerror}; `crops` names a folder of pictures") from None
    by_frame: dict[int, str] = {}
    left_out = 0
    for name in names:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() not in SUFFIXES or not (stem.isascii() and stem.isdigit()):
            left_out += 1
            continue
        row = int(stem) - 1
        if not 0 <= row < MOST_FRAMES:
            raise ClipError(
                "bad_crops",
                f"{path / name}: found number {row + 1}, expected pictures numbered from 1 to {MOST_FRAMES:,}",
            )
        if row in by_frame:
            raise ClipError("bad_crops", f"{path}: found {by_frame[row]} and {name}, expected one picture per frame")
        by_frame[row] = name
    return CropFolder(path, by_frame, left_out)


def listing_stamp(path: Path) -> tuple[int, int]:
    """Number of files, and a hash of their names, sizes and times: equal as long as the folder is unchanged.

    Raises:
        OSError: it cannot be listed.
    """
    with os.scandir(path) as entries:
        found = sorted((entry.name, (status := _status(entry)).st_size, status.st_mtime_ns) for entry in entries)
    digest = hashlib.sha256(repr(found).encode()).digest()
    return len(found), int.from_bytes(digest[:7])  # fits a JSON number


def _status(entry: "os.DirEntry[str]") -> os.stat_result:
    """Status of the file, or of the link itself if its target is missing: the folder can be listed all the same."""
    try:
        return entry.stat()
    except FileNotFoundError:
        return entry.stat(follow_symlinks=False)


def folder_sha256(path: Path, of_file: Callable[[Path], str]) -> str:
    """sha256 over the sorted names and hashes of the pictures.

    Args:
        of_file: sha256 of one picture.

    Raises:
        ClipError: as ``list_crops``. Errors of ``of_file`` pass through.
    """
    digest = hashlib.sha256()
    folder = list_crops(path)
    for name in sorted(folder.by_frame.values()):
        digest.update(f"{name}\0{of_file(path / name)}\n".encode())
    return digest.hexdigest()


class _NothingToClose:
    """A context manager that does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        return None


class GivenCrops(_NothingToClose):
    """A folder's pictures as frames, one per row of the frame clock; a row without a readable picture has no image.

    Notes: ``missing_crops``, ``left_out_files`` and, by ``note_unreadable``, ``unreadable_crops {count, first}``.
    """

    def __init__(self, folder: CropFolder, num_frames: int) -> None:
        self._folder = folder
        self.declared_frames: int | None = num_frames
        counts = {"missing_crops": num_frames - len(folder.by_frame), "left_out_files": folder.left_out}
        self.notes: dict[str, Any] = {name: number for name, number in counts.items() if number}

    def frames(self, wanted: Callable[[int], bool] | None = None) -> Iterator[VideoFrame]:
        """Raises ClipError as ``read_crop``."""
        for row in range(self.declared_frames or 0):
            asked = wanted is None or wanted(row)
            name = self._folder.by_frame.get(row)
            yield VideoFrame(row, 0.0, read_crop(self._folder.path / name) if asked and name is not None else None)

    def note_unreadable(self, valid: NDArray[np.bool_]) -> None:
        """Note the pictures that gave no valid row; ``valid`` [T] is that of all rows.

        This goes by what is stored, not by what was read, because an earlier run may have read some of them.
        """
        damaged = [name for row, name in sorted(self._folder.by_frame.items()) if not valid[row]]
        if damaged:
            self.notes["unreadable_crops"] = {"count": len(damaged), "first": damaged[0]}


def read_crop(path: Path) -> NDArray[np.uint8] | None:
    """RGB [112, 112, 3], C-contiguous; None for a damaged picture.

    Raises:
        ClipError: ``bad_crops``: the picture has another size, so it is aligned in another way; ``unreadable``: the
            disk does not return the file, which says nothing about the face.
    """
    from PIL import Image, UnidentifiedImageError  # here: planning imports this module and reads no picture

    try:
        data = path.read_bytes()
    except OSError as error:
        raise ClipError("unreadable", f"{path}: {error.strerror or error}") from None
    try:
        with Image.open(BytesIO(data), formats=("JPEG", "PNG")) as opened:
            width, height = opened.size  # from the header: a picture of another size is not decoded
            if (width, height) == (SIZE_PX, SIZE_PX):
                if opened.mode.startswith("I"):  # gray of 16 bits, which Pillow would clip to the lowest 8
                    return np.repeat((np.asarray(opened) >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
                return np.array(opened.convert("RGB"), dtype=np.uint8)
    except Image.DecompressionBombError as error:
        raise ClipError("bad_crops", f"{path}: {error}; expected {SIZE_PX} x {SIZE_PX} pixels") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):  # what Pillow raises for damaged files
        return None
    raise ClipError(
        "bad_crops",
        f"{path}: found {width} x {height} pixels, expected {SIZE_PX} x {SIZE_PX} as in `cropped_aligned`",
    )


class Continued(_NothingToClose):
    """A movie whose crops reach beyond its last frame: the times continue at the last interval.

    Notes: the movie's, and ``frames_beyond_movie``.
    """

    def __init__(self, movie: Pictures, num_frames: int) -> None:
        self._movie, self._num_frames = movie, num_frames
        self.declared_frames: int | None = max(movie.declared_frames or 0, num_frames)
        self.notes: dict[str, Any] = {}

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._movie.__exit__(kind, error, tb)

    def frames(self, wanted: Callable[[int], bool] | None = None) -> Iterator[VideoFrame]:
        before_s = last_s = 0.0
        given = 0
        for frame in self._movie.frames(wanted):
            before_s, last_s = last_s, frame.pts_s
            given = frame.index + 1
            yield frame
        self.notes.update(self._movie.notes)
        if given < self._num_frames:
            self.notes["frames_beyond_movie"] = self._num_frames - given
        step_s = last_s - before_s if given > 1 else LONE_FRAME_S
        for row in range(given, self._num_frames):
            if wanted is not None:
                wanted(row)  # there are no pixels to return
            yield VideoFrame(row, last_s + (row - given + 1) * step_s, None)


class Assumed(_NothingToClose):
    """Times of crops without a movie: row / fps. Notes: ``time: assumed``."""

    def __init__(self, fps: float, num_frames: int) -> None:
        self._fps = fps
        self.declared_frames: int | None = num_frames
        self.notes: dict[str, Any] = {"time": "assumed"}

    def frames(self, wanted: Callable[[int], bool] | None = None) -> Iterator[VideoFrame]:
        for row in range(self.declared_frames or 0):
            if wanted is not None:
                wanted(row)  # there are no pixels to return
            yield VideoFrame(row, row / self._fps, None)
