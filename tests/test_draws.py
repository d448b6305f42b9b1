"""Windows around rare classes are drawn more often, and how much more often is known."""

from __future__ import annotations

import numpy as np
import pytest

from patchtree.draws import draw_corner, draw_odds, draw_source


def test_odds_are_finite_whatever_is_drawn() -> None:
    one = np.array([(100, 0)])
    assert draw_odds(one, np.array([1.0, 0.0]), np.array([1.0, 0.0]), foreground=0.5) == 1
    two = np.array([(90, 10), (100, 0)])
    assert draw_odds(two, np.zeros(2), np.array([1.0, 0.0]), foreground=1.0) == pytest.approx(0.1)


def test_a_rare_class_is_drawn_in_an_image_that_has_it() -> None:
    pixels = np.array([(90, 0, 10), (80, 20, 0), (100, 0, 0)])
    rng = np.random.default_rng(0)
    drawn = [draw_source(pixels, 0.5, rng) for _ in range(400)]
    assert {(at, label) for at, label in drawn if label is not None} == {(1, 1), (0, 2)}
    assert {at for at, label in drawn if label is None} == {0, 1, 2}
    assert 150 < sum(label is not None for _, label in drawn) < 250


def test_windows_have_the_place_in_their_middle_half_but_at_borders() -> None:
    rng = np.random.default_rng(0)
    shape, room = np.array([40, 20]), np.array([100, 200])
    target = np.array([50, 100])
    places = np.array([target - draw_corner(target, shape, room, rng) for _ in range(500)])
    assert places.min(0).tolist() == [10, 5]
    assert places.max(0).tolist() == [29, 14]
    for target in (np.array([0, 199]), np.array([99, 0])):
        corner = draw_corner(target, shape, room, rng)
        assert (corner >= 0).all()
        assert (corner + shape <= room).all()
        assert ((target >= corner) & (target < corner + shape)).all()
