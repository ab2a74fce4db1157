"""Which steps of a long recording attend to each other."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Chunk:
    """Consecutive steps that go through the transformer together."""

    seen: slice
    """All of them, of the recording's steps."""
    kept: slice
    """Those whose values are taken from this chunk."""


def overlapping_chunks(num_steps: int, max_steps: int, overlap_steps: int) -> list[Chunk]:
    """As few chunks as there can be of at most ``max_steps``, their sizes even to one step, neighbours overlapping.

    ::

        |======== chunk 0 =========|              overlap: kept from the chunk in which a step lies more deeply,
                          |========= chunk 1 ==========|    that is, further from the end that was cut
        |------ kept -----------|--------- kept -------|    (as deep in both: from the earlier one)

    A recording of at most ``max_steps`` is one chunk. In a longer one every chunk has more than
    ``(max_steps + overlap_steps) / 2`` steps, and all together have at most ``overlap_steps`` more than the recording
    for every ``max_steps - overlap_steps`` of it.

    Args:
        overlap_steps: of neighbours, less than half of ``max_steps``: no step is in three chunks.
    """
    if not 0 <= 2 * overlap_steps < max_steps:
        raise ValueError(f"an overlap of {overlap_steps} steps in chunks of {max_steps}, expected less than half")
    if num_steps <= max_steps:
        return [Chunk(slice(0, num_steps), slice(0, num_steps))]
    num_chunks = -(-(num_steps - overlap_steps) // (max_steps - overlap_steps))
    size, one_more = divmod(num_steps + (num_chunks - 1) * overlap_steps, num_chunks)
    chunks: list[Chunk] = []
    start = kept_from = 0
    for number in range(num_chunks):
        stop = start + size + (number < one_more)
        next_start = stop - overlap_steps
        is_last = number == num_chunks - 1
        kept_until = stop if is_last else next_start + (overlap_steps + 1) // 2
        chunks.append(Chunk(slice(start, stop), slice(kept_from, kept_until)))
        start, kept_from = next_start, kept_until
    return chunks
