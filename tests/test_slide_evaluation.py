from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import tifffile

from patchtree.datasets import Pair
from patchtree.inference import evaluate, load
from patchtree.io.slides import open_slide
from patchtree.slide_inference import predict_slide
from slide_files import small_slide
from untrained import untrained_run


def test_a_slide_is_compared_as_its_whole_map_is(tmp_path: Path) -> None:
    image, mask = small_slide(tmp_path, (2100, 700), tissue=0.4)
    predictor = load(untrained_run(tmp_path / "run"), device="cpu")
    predictor = replace(predictor, config=replace(predictor.config, ignore=7))
    with open_slide(image) as slide:
        predict_slide(predictor, slide, tmp_path / "found.tif")
    found = tifffile.imread(tmp_path / "found.tif", level=0)
    assert set(np.unique(found)) == {0, 1}
    truth = tifffile.imread(mask, level=0)
    truth[:300] = 7
    tifffile.imwrite(mask, truth, tile=(128, 128))
    [table] = evaluate(predictor, [Pair("slide", image, mask, slide=True)])
    wanted = [[np.count_nonzero((truth == true) & (found == given)) for given in (0, 1)] for true in (0, 1)]
    assert table.tolist() == wanted
    assert table.sum() == 1800 * 700
