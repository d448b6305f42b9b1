from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import tifffile

from patchtree.io.slides import Slide, SlideReadError, open_slide
from patchtree.slides.lenient import Lenient


@pytest.fixture
def slide(tmp_path: Path) -> Slide:
    """300 x 400 pixels of 7, of which two of the tiles of 128 cannot be read."""
    path = tmp_path / "slide.svs"
    tifffile.imwrite(path, np.full((300, 400, 3), 7, np.uint8), tile=(128, 128), compression="zlib")
    with tifffile.TiffFile(path) as file:
        places = [file.pages[0].dataoffsets[at] for at in (5, 11)]
    with path.open("r+b") as file:
        for place in places:
            file.seek(place)
            file.write(bytes(20))
    return open_slide(path)


def test_only_what_cannot_be_read_is_background(slide: Slide) -> None:
    with pytest.raises(SlideReadError):
        slide.read(0, 0, 0, 300, 400)
    expected = np.full((300, 400, 3), 7, np.uint8)
    expected[128:256, 128:256] = expected[256:, 384:] = 255
    lenient = Lenient(slide)
    for box in ((0, 0, 300, 400), (100, 100, 200, 140), (0, 0, 128, 400), (250, 300, 320, 420)):
        part = expected[box[0] : box[2], box[1] : box[3]]
        np.testing.assert_array_equal(lenient.read(0, *box)[: len(part), : part.shape[1]], part)
    assert lenient.bad == {(0, 1, 1), (0, 2, 3)}
    with pytest.warns(
        UserWarning, match="2 tiles cannot be .* the first at level 0, rows 128 to 256, columns 128 to 256"
    ):
        lenient.warn()
    again = pickle.loads(pickle.dumps(lenient))
    np.testing.assert_array_equal(again.read(0, 0, 0, 300, 400), expected)


def test_another_process_counts_on(slide: Slide, tmp_path: Path) -> None:
    log = tmp_path / "bad.txt"
    first = Lenient(slide)
    first.keep_log(log)
    for _ in range(2):
        first.read(0, 128, 128, 130, 130)
    assert log.read_text() == "0 1 1\n"
    log.write_text("0 1 1\n0 2")  # killed while it was writing
    second = Lenient(slide)
    second.keep_log(log)
    assert second.bad == {(0, 1, 1)}
    second.read(0, 0, 0, 300, 400)
    assert second.bad == {(0, 1, 1), (0, 2, 3)}
    third = Lenient(slide)
    third.keep_log(log)
    assert third.bad == {(0, 1, 1), (0, 2, 3)}
