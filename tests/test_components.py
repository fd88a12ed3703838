"""Connected components against scipy, on awkward arrays."""

import numpy as np
import pytest
from scipy import ndimage

from pneumoscope import components

RANK = {4: 1, 8: 2, 6: 1, 18: 2, 26: 3}


def masks():
    random = np.random.default_rng(3).random((4, 5, 6)) > 0.7
    diagonal = np.zeros((4, 5, 6), bool)
    diagonal[0, 0, 0] = diagonal[1, 1, 1] = diagonal[1, 2, 1] = diagonal[3, 4, 5] = True
    return [random, diagonal, np.asfortranarray(random), random[::-1, :, ::2], np.ones((4, 5, 6), bool)]


@pytest.mark.parametrize("connectivity", [6, 18, 26, 4, 8])
@pytest.mark.parametrize("number", range(5))
def test_components_are_those_of_scipy(connectivity, number):
    mask = masks()[number] if connectivity in (6, 18, 26) else masks()[number][:, :, 1]
    structure = ndimage.generate_binary_structure(mask.ndim, RANK[connectivity])
    expected, n = ndimage.label(mask, structure)
    labels, sizes = components.label(mask, connectivity)
    assert len(sizes) == n + 1
    assert sizes[0] == 0
    assert len({*zip(expected.ravel().tolist(), labels.ravel().tolist(), strict=True)}) == len(np.unique(expected))
    volumes = np.bincount(expected.ravel())[1:]
    assert sorted(sizes[1:]) == sorted(volumes)
    for least in (0.5, 2, 2.5):
        kept = components.without_small(mask, least, connectivity)
        assert np.array_equal(kept, mask & np.isin(expected, 1 + np.flatnonzero(volumes >= least)))
        found = list(components.each(mask, least, connectivity))
        assert sum(map(len, found)) == np.count_nonzero(kept)
        assert all(mask[tuple(where.T)].all() and len(where) >= least for where in found)
        assert len(found) == np.count_nonzero(volumes >= least)


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 9, 1), (3, 3, 3), (1, 301, 401), (5, 1, 7), (3, 5), (1, 4)])
def test_single_voxels_as_close_as_they_can_be(shape):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(None, None, 2) for _ in shape)] = True
    n = np.count_nonzero(mask)
    labels, sizes = components.label(mask, 26 if mask.ndim == 3 else 8)
    assert labels.shape == shape
    assert sizes.tolist() == [0] + [1] * n
    assert len(list(components.each(mask, connectivity=26 if mask.ndim == 3 else 8))) == n


def test_an_empty_mask_has_no_components():
    mask = np.zeros((4, 5, 6), bool)
    labels, sizes = components.label(mask)
    assert not labels.any()
    assert sizes.tolist() == [0]
    assert list(components.each(mask)) == list(components.each(mask[:, :0])) == []
    assert not components.without_small(mask, 5).any()
