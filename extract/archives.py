"""Checks that a file of tensors is no larger than it claims, before it is unpacked."""

import zipfile
from pathlib import Path
from typing import IO

ROOM = 1.01
ROOM_BYTES = 1 << 20
"""``torch.save`` stores its members uncompressed: unpacked, an archive is about as large as its file."""


def too_large(file: "Path | IO[bytes]", num_bytes: int) -> str | None:
    """What is wrong with the declared sizes of a zip archive of ``num_bytes``; None if nothing is, or it is no archive.

    Only its list of members is read. A list that lies is found by who unpacks: no more is ever read than it declares.
    """
    if not zipfile.is_zipfile(file):  # without a list of members torch's reader refuses it, too
        return None
    try:
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        return f"its list of members cannot be read ({error})"  # and another reader may read another list
    if unpacked <= num_bytes * ROOM + ROOM_BYTES:
        return None
    return f"it would unpack to {unpacked / 1e6:,.0f} MB from {num_bytes / 1e6:,.1f}; tensors are stored uncompressed"
