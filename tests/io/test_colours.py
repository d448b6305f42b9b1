from __future__ import annotations

import numpy as np
import pytest

from patchtree import InputError
from patchtree.io.colours import class_colours, overlay


def test_every_class_has_a_colour_of_its_own() -> None:
    labels = {"background": 0, **{f"class {i}": i for i in range(1, 25)}}
    colours = class_colours(labels)
    assert "background" not in colours
    assert all(0 <= value <= 255 for colour in colours.values() for value in colour)
    assert len(set(list(colours.values())[:8])) == 8


def test_only_coloured_classes_are_tinted() -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (50, 70, 3)).astype(np.uint8)
    ids = np.array([[0, 1], [2, 1]])
    out = overlay(picture, ids, {1: (0, 200, 0)}, opacity=1)
    np.testing.assert_array_equal(out[:, :35], picture[:, :35])
    assert (out[:, 35:] == (0, 200, 0)).all()
    np.testing.assert_array_equal(overlay(picture, ids, {1: (0, 200, 0)}, opacity=0), picture)
    large = np.kron(ids, np.ones((500, 700), int))
    np.testing.assert_array_equal(overlay(picture, large, {1: (0, 200, 0)}, opacity=1), out)


def test_bad_input_is_told() -> None:
    with pytest.raises(InputError, match="give 8-bit RGB"):
        overlay(np.zeros((4, 4), np.uint8), np.zeros((4, 4), int), {})
    with pytest.raises(InputError, match=r"give \(H, W\)"):
        overlay(np.zeros((4, 4, 3), np.uint8), np.zeros((0, 4), int), {})
