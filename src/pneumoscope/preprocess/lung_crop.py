"""Cut slices to the lungs and bring them to one size: the lungs fill the frame whatever the field of view.

One crop serves all slices of a scan (the box around the lungs of the whole stack), so neighbouring slices stay
comparable, and the way back puts a probability on the rows and columns it came from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import InputError


@dataclass(frozen=True)
class LungCrop:
    """A box of a slice stack and the frame it is scaled into, proportions kept, centred.

    Attributes:
        box: (top, bottom, left, right), bottom and right exclusive; may reach beyond the slice.
        frame: (rows, columns) of the result.
        full: (rows, columns) of the slices the box was taken on.
    """

    box: tuple[int, int, int, int]
    frame: tuple[int, int]
    full: tuple[int, int]

    @classmethod
    def around(cls, lungs: NDArray[np.bool_], frame: tuple[int, int], margin: float = 0.03) -> LungCrop:
        """The crop around all lungs of a stack (n, h, w), with a margin as a share of the box.

        Without any lung the whole slice is taken.
        """
        if lungs.ndim != 3:
            raise InputError(f"lungs must be a stack (n, h, w), got shape {lungs.shape}")
        full = (lungs.shape[1], lungs.shape[2])
        seen = np.any(lungs, axis=0)
        if not seen.any():
            return cls((0, full[0], 0, full[1]), frame, full)
        rows, columns = np.flatnonzero(np.any(seen, axis=1)), np.flatnonzero(np.any(seen, axis=0))
        top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
        down, across = round((bottom - top) * margin) + 1, round((right - left) * margin) + 1
        return cls((int(top - down), int(bottom + down), int(left - across), int(right + across)), frame, full)

    @property
    def scale(self) -> float:
        """Frame pixels per slice pixel."""
        top, bottom, left, right = self.box
        return min(self.frame[0] / (bottom - top), self.frame[1] / (right - left))

    def _to_frame(self) -> NDArray[np.float64]:
        """(2, 3) matrix taking slice (x, y) to frame (x, y), pixel centres at whole numbers."""
        top, bottom, left, right = self.box
        centre = np.array([(left + right - 1) / 2, (top + bottom - 1) / 2])
        middle = np.array([(self.frame[1] - 1) / 2, (self.frame[0] - 1) / 2])
        return np.array([[self.scale, 0, 0], [0, self.scale, 0]]) + np.column_stack(
            (np.zeros((2, 2)), middle - self.scale * centre)
        )

    def cut(self, stack: NDArray[np.generic], *, nearest: bool = False) -> NDArray[np.generic]:
        """Slices (n, h, w) cut to (n, *frame). Outside the slice is 0; `nearest` for masks."""
        import cv2

        return self._warp(stack, self._to_frame(), self.frame, cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR)

    def paste(self, stack: NDArray[np.floating]) -> NDArray[np.float32]:
        """Frames (n, *frame) back on (n, *full), linear; 0 where the crop did not look."""
        import cv2

        back = np.asarray(cv2.invertAffineTransform(self._to_frame()), np.float64)
        pasted = self._warp(stack.astype(np.float32), back, self.full, cv2.INTER_LINEAR)
        return pasted.astype(np.float32, copy=False)

    def _warp(
        self, stack: NDArray[np.generic], matrix: NDArray[np.float64], size: tuple[int, int], way: int
    ) -> NDArray[np.generic]:
        import cv2

        data = stack.astype(np.uint8) if stack.dtype == bool else stack
        out = np.empty((len(data), *size), data.dtype)
        for i, plane in enumerate(data):
            out[i] = cv2.warpAffine(plane, matrix, (size[1], size[0]), flags=way, borderMode=cv2.BORDER_CONSTANT)
        return out
