"""Whether a file of tensors is as large as it says, before it is unpacked."""

import zipfile
from pathlib import Path
from typing import IO

ROOM = 1.01
ROOM_BYTES = 1 << 20
"""``torch.save`` stores its members as they are: unpacked, an archive is no larger than its file, give or take."""


def too_large(file: "Path | IO[bytes]", num_bytes: int) -> str | None:
    """What is wrong with the declared sizes of a zip archive of ``num_bytes``; None where nothing is, or it is none.

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
