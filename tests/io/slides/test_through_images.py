"""Plain images as slides."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from patchtree.errors import InputError
from patchtree.io.images import write_image
from patchtree.io.slides import open_slide
from patchtree.pyramid import pyramid


@pytest.mark.parametrize(("channels", "dtype"), [(3, np.uint8), (1, np.uint8), (1, np.uint16), (3, np.uint16)])
@pytest.mark.parametrize("shape", [(300, 1101), (513, 20), (512, 512)])
def test_levels_are_means(tmp_path: Path, channels: int, dtype: Any, shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (*shape, channels), dtype, endpoint=True)
    write_image(tmp_path / "a.png", image)
    with open_slide(tmp_path / "a.png", mpp=(0.5, 1)) as slide, pickle.loads(pickle.dumps(slide)) as other:
        assert slide.mpp == other.mpp == (0.5, 1)
        assert slide.dtype == dtype
        assert slide.background.tolist() == [255 if (channels, dtype) == (3, np.uint8) else 0] * channels
        expected = [1, 2, 4][: len(slide.levels)]
        assert [level.downsample for level in slide.levels] == [(factor, factor) for factor in expected]
        assert max(slide.levels[-1].shape) <= 512
        assert len(slide.levels) == 1 or max(slide.levels[-2].shape) > 512
        for level, means in enumerate(pyramid(image, len(slide.levels) - 1)):
            read = slide.read(level, 0, 0, *slide.levels[level].shape)
            np.testing.assert_allclose(read, means.values * means.scale, atol=0.5)
            np.testing.assert_array_equal(read, other.read(level, 0, 0, *slide.levels[level].shape))
        assert (slide.read(0, -2, -2, 0, 5) == slide.background).all()


def test_reads_are_the_callers_until_it_is_closed(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", np.ones((9, 9), np.uint8))
    slide = open_slide(tmp_path / "a.png")
    slide.read(0, 0, 0, 9, 9)[:] = 0
    assert slide.read(0, 0, 0, 9, 9).all()
    slide.close()
    slide.close()
    with pytest.raises(ValueError, match="is closed"):
        slide.read(0, 0, 0, 9, 9)


def test_damaged_images_are_told(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", np.random.default_rng(0).integers(0, 255, (99, 99), np.uint8))
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:2000])
    with pytest.raises(InputError, match=r"a\.png: PNG that is damaged"):
        open_slide(tmp_path / "a.png")
