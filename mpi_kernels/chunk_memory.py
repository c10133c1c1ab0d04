"""Memory that stored chunks are read into, used again and again.

Fresh memory for every chunk has to be cleared by the operating system first, which takes twice as long as the reading.
"""

from __future__ import annotations

import numpy as np


class ChunkMemory:
    """A ring of buffers.

    Parameters
    ----------
    chunks
        How many chunks stay as they are while further ones are read.
    """

    def __init__(self, chunks: int) -> None:
        # one more, because the last chunk is compared with the next
        self._buffers = [np.empty(0, np.uint8) for _ in range(chunks + 1)]
        self._next = 0

    def next(self, size: int) -> memoryview:
        """Return the memory of the chunk that was read longest ago; at least `size` bytes."""
        self._next = (self._next + 1) % len(self._buffers)
        if len(self._buffers[self._next]) < size:
            self._buffers[self._next] = np.empty(size, np.uint8)  # what of it is never written takes no memory
        return self._buffers[self._next].data
