"""Finds media files that end before their container does: FFmpeg reads a cut-off Matroska file without an error."""

from pathlib import Path


def is_cut_off(path: Path, container_format: str) -> bool:
    """Whether the file is shorter than its outermost boxes say.

    MPEG program streams and FLV state no size: there, only an incomplete last packet or frame shows the damage.

    Args:
        container_format: FFmpeg's name of the format.
    """
    num_bytes = path.stat().st_size
    if container_format == "mpegts":  # ISO/IEC 13818-1: packets of 188 bytes; of 192 or 204 with timestamp or parity
        return all(num_bytes % size for size in (188, 192, 204))
    with path.open("rb") as file:
        if "matroska" in container_format:
            end = _end_of_matroska(file.read(64))
        elif container_format in {"avi", "wav"}:
            end = _end_of_riff(file.read(8))
        elif "mp4" in container_format:
            end = 0
            while end + 8 <= num_bytes:
                file.seek(end)
                size = _size_of_box(file.read(16), num_bytes - end)
                if size < 8:  # no box; whatever follows it, nothing is missing
                    return False
                end += size
        else:
            end = 0
    return end > num_bytes


def _end_of_matroska(head: bytes) -> int:
    """End of the Segment after the EBML header (RFC 8794 section 4, RFC 9559 section 5.1); 0 if it is not stated."""
    end = 0
    for identity in (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"):
        if head[end : end + 4] != identity or end + 4 >= len(head):
            return 0
        width = 9 - head[end + 4].bit_length()  # the number of leading zero bits is the number of further bytes
        field_bytes = head[end + 4 : end + 4 + width]
        value = int.from_bytes(field_bytes, "big") & ((1 << 7 * width) - 1)
        if len(field_bytes) < width or value == (1 << 7 * width) - 1:  # all ones: unknown, as in a live stream
            return 0
        end += 4 + width + value
    return end


def _end_of_riff(head: bytes) -> int:
    """End of the first RIFF chunk; 0 where the writer could not go back to fill it in (zero or the largest sizes)."""
    size = int.from_bytes(head[4:8], "little")
    return 8 + size if head[:4] == b"RIFF" and size < 0x7FFF_0000 else 0


def _size_of_box(head: bytes, num_left: int) -> int:
    """Bytes of an ISO base media box (ISO/IEC 14496-12, 4.2): 0 reaches to the end, 1 precedes a 64-bit size."""
    size = int.from_bytes(head[:4], "big")
    if size == 1:
        return int.from_bytes(head[8:16], "big")
    return size or num_left
