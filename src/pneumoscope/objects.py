"""What results and images have in common for those who work in Python: shown in a notebook, drawn, saved, handed on.

The objects stand low in the package and what draws and writes them stands high, so it is called by its name here, as
`pneumoscope` itself calls its functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib import import_module
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

if TYPE_CHECKING:
    import nibabel as nib
    import pandas as pd
    import SimpleITK as sitk  # noqa: N813
    from matplotlib.axes import Axes


def _called(module: str) -> Any:
    return import_module(f"pneumoscope.{module}")


class Shown:
    """A result with numbers and a picture."""

    panels: ClassVar[int] = 1  # axes side by side in its picture

    def _numbers(self) -> Mapping[str, str]:
        """What stands beside the picture, ready to be read."""
        raise NotImplementedError

    def _draw(self, axes: Sequence[Axes]) -> None:
        """Draw into `panels` Matplotlib axes."""
        raise NotImplementedError

    def plot(self, axes: Any = None) -> Any:
        """Draw with Matplotlib; gives the axes, new ones unless some are given."""
        if axes is None:
            import matplotlib.pyplot as plt

            size = (3.4 * self.panels, 3.6) if self.panels > 1 else (6.4, 3.6)
            _, axes = plt.subplots(1, self.panels, figsize=size, layout="constrained")
        self._draw(list(np.ravel(axes)))
        return axes

    def _repr_html_(self) -> str:
        figures = _called("reports.figures")
        figure = figures.new_figure(2.6 * self.panels if self.panels > 1 else 5.0, 2.8)
        figure.set_layout_engine("constrained")
        self._draw(list(np.ravel(figure.subplots(1, self.panels))))
        rows = "".join(
            f"<tr><th style='text-align:left'>{escape(name)}</th><td style='text-align:left'>{escape(value)}</td></tr>"
            for name, value in self._numbers().items()
        )
        picture = f"<img alt='' style='max-width:100%' src='{figures.data_uri(figures.png(figure))}'>"
        return f"<div><b>{type(self).__name__}</b><br>{picture}<table>{rows}</table></div>"


class Tabled(Shown):
    """A result that is a table; `save` writes .csv, or .json with everything."""

    def __repr__(self) -> str:
        numbers = [f"{name} {shorten(value, 50, placeholder='...')}" for name, value in self._numbers().items()]
        return f"{type(self).__name__}({', '.join(numbers)})"

    def to_frame(self) -> pd.DataFrame:
        """The table as a pandas frame."""
        raise NotImplementedError

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        raise NotImplementedError

    def save(self, path: str | Path) -> Path:
        """Write .csv (the table) or .json (everything); gives the path.

        Raises:
            InputError: another suffix.
        """
        files, errors = _called("io.files"), _called("errors")
        path = Path(path)
        if path.suffix.lower() == ".csv":
            files.write_text(path, self.to_frame().to_csv(index=False, lineterminator="\n"))
        elif path.suffix.lower() == ".json":
            files.write_json(path, self.as_dict())
        else:
            raise errors.InputError(f"ends in {path.suffix!r}, expected .csv or .json", path=path)
        return path


class Voxels(Shown):
    """An image in space: `np.asarray` gives its voxels (i, j, k) on RAS+ axes, `to_...` other libraries' objects."""

    panels: ClassVar[int] = 3

    @property
    def voxels(self) -> np.ndarray[Any, Any]:
        """(i, j, k) on RAS+ axes."""
        raise NotImplementedError

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return np.array(self.voxels, dtype=dtype, copy=copy)

    @classmethod
    def from_nibabel(cls, image: nib.spatialimages.SpatialImage, **options: Any) -> Self:
        """From a nibabel image; checked and named as the file would be.

        `options`: ``case`` and ``intensity`` for scans as `io.read.read_volume`; ``names`` and ``threshold`` for masks
        as `io.read.read_mask`.
        """
        made: Self = _called("io.read").made_of(cls, image, **options)
        return made

    @classmethod
    def from_sitk(cls, image: sitk.Image, **options: Any) -> Self:
        """From a SimpleITK image; `options` as for `from_nibabel`."""
        made: Self = _called("io.read").made_of(cls, image, **options)
        return made

    @classmethod
    def from_array(cls, array: Any, affine: Any, **options: Any) -> Self:
        """From an array (i, j, k) and the affine (4, 4) from its voxels to RAS+ mm; `options` as for `from_nibabel`."""
        made: Self = _called("io.read").made_of(cls, (array, affine), **options)
        return made

    def to_nibabel(self) -> nib.Nifti1Image:
        """A nibabel image, its axes and affine those of the scan's file."""
        image: nib.Nifti1Image = _called("io.write").to_nibabel(self)
        return image

    def to_sitk(self) -> sitk.Image:
        """A SimpleITK image, its axes those of the scan's file.

        Raises:
            GeometryError: the axes are not perpendicular, which ITK does not know.
        """
        image: sitk.Image = _called("io.write").to_sitk(self)
        return image

    def to_torch(self) -> Any:
        """A tensor (1, i, j, k) on RAS+ axes: float32 for scans, uint8 for masks."""
        return _called("io.write").to_torch(self)

    def to_monai(self) -> Any:
        """A MONAI ``MetaTensor`` (1, i, j, k) with its affine.

        Raises:
            InputError: MONAI is not installed.
        """
        return _called("io.write").to_monai(self)

    def to_torchio(self) -> Any:
        """A TorchIO ``ScalarImage``, of a mask a ``LabelMap``.

        Raises:
            InputError: TorchIO is not installed.
        """
        return _called("io.write").to_torchio(self)

    def _draw(self, axes: Sequence[Axes]) -> None:
        _called("reports.figures").draw_object(axes, self)

    def save(self, path: str | Path) -> Path:
        """Write .nii.gz, .nii, .nrrd or .mha on the grid of the scan's file; gives the path."""
        _called("io.write").save(self, path)
        return Path(path)


def bars(axes: Axes, values: Mapping[str, float], label: str) -> None:
    """Draw horizontal bars, the first on top."""
    names = list(values)[::-1]
    axes.barh(names, [values[name] for name in names], color="#3b7ea1")
    axes.set_xlabel(label)
    axes.spines[["top", "right"]].set_visible(False)
