from __future__ import annotations

import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from patchtree import InputError, read_mask
from patchtree.io import pyramids
from patchtree.io.pyramids import Read, level_shapes, majority, write_class_map
from patchtree.io.regions import Regions

RNG = np.random.default_rng(0)
COARSE = RNG.integers(0, 4, (40, 60)).astype(np.uint8)
COARSE[:20, 20:] = 3
IDS = COARSE.repeat(50, 0).repeat(40, 1)[:1777, :2311]


def reader(ids: NDArray[Any]) -> Read:
    return lambda y0, x0, y1, x1: ids[y0:y1, x0:x1]


def levels(path: Path) -> list[NDArray[Any]]:
    with tifffile.TiffFile(path) as file:
        assert len(file.series) == 1
        return [level.asarray() for level in file.series[0].levels]


def most(ids: NDArray[Any]) -> NDArray[Any]:
    """What most of 4 pixels have, the slow and obvious way."""
    out = np.empty((-(-ids.shape[0] // 2), -(-ids.shape[1] // 2)), ids.dtype)
    for y, x in np.ndindex(*out.shape):
        rows, columns = np.minimum([2 * y, 2 * y + 1], len(ids) - 1), np.minimum([2 * x, 2 * x + 1], ids.shape[1] - 1)
        block = ids[np.ix_(rows, columns)].ravel().tolist()
        out[y, x] = max(block, key=lambda value: (block.count(value), -block.index(value)))
    return out


@given(
    st.integers(1, 9), st.integers(1, 9), st.integers(2, 5), st.sampled_from([np.uint8, np.uint16]), st.integers(0, 99)
)
def test_majority_is_what_most_pixels_have(height: int, width: int, classes: int, dtype: Any, seed: int) -> None:
    ids = (np.random.default_rng(seed).integers(0, classes, (height, width)) * np.iinfo(dtype).max // 4).astype(dtype)
    np.testing.assert_array_equal(majority(ids), most(ids))


@pytest.mark.parametrize("ome", [False, True], ids=["plain", "ome"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("rows", [None, 512, 1024])
def test_levels_are_what_they_should_be(tmp_path: Path, ome: bool, dtype: Any, rows: int | None) -> None:
    ids = IDS.astype(dtype) * np.iinfo(dtype).max // 3
    path = tmp_path / "ids.tif"
    write_class_map(path, ids.shape, reader(ids), dtype, (0.5, 0.25), ome, rows)
    found = levels(path)
    assert (
        [level.shape for level in found]
        == level_shapes(ids.shape)
        == [(1777, 2311), (889, 1156), (445, 578), (223, 289)]
    )
    np.testing.assert_array_equal(found[0], ids)
    for finer, level in pairwise(found):
        np.testing.assert_array_equal(level, majority(finer))
    np.testing.assert_array_equal(read_mask(path), ids)
    with tifffile.TiffFile(path) as file:
        assert file.is_ome == ome
        assert file.pages.first.get_resolution("MICROMETER") == pytest.approx((4, 2))
        assert {page.compression for level in file.series[0].levels for page in level.pages} == {8}
        if ome:
            assert 'PhysicalSizeY="0.5" PhysicalSizeYUnit="µm" PhysicalSizeX="0.25"' in file.ome_metadata
            assert f'Type="{ids.dtype}" SizeX="2311" SizeY="1777"' in file.ome_metadata


def test_openslide_sees_the_plain_pyramid(tmp_path: Path) -> None:
    write_class_map(tmp_path / "ids.tif", IDS.shape, reader(IDS), mpp=(0.5, 0.25))
    with openslide.OpenSlide(tmp_path / "ids.tif") as slide:
        assert slide.level_dimensions == tuple(shape[::-1] for shape in level_shapes(IDS.shape))
        assert float(slide.properties[openslide.PROPERTY_NAME_MPP_X]) == pytest.approx(0.25)
        assert float(slide.properties[openslide.PROPERTY_NAME_MPP_Y]) == pytest.approx(0.5)
        for level, wanted in enumerate(levels(tmp_path / "ids.tif")):
            pixels = np.asarray(slide.read_region((0, 0), level, slide.level_dimensions[level]))
            np.testing.assert_array_equal(pixels[..., :3], np.stack([wanted] * 3, -1))
            assert (pixels[..., 3] == 255).all()


def test_tiff_is_valid_for_another_reader_of_pages(tmp_path: Path) -> None:
    from PIL import Image

    write_class_map(tmp_path / "ids.tif", IDS.shape, reader(IDS))
    with Image.open(tmp_path / "ids.tif") as image:
        np.testing.assert_array_equal(np.asarray(image), IDS)


@pytest.mark.parametrize("shape", [(1, 1), (512, 512), (513, 2), (512, 1024)])
@pytest.mark.parametrize("ome", [False, True])
def test_small_and_odd_shapes(tmp_path: Path, shape: tuple[int, int], ome: bool) -> None:
    ids = RNG.integers(0, 3, shape).astype(np.uint8)
    write_class_map(tmp_path / "ids.tif", shape, reader(ids), ome=ome)
    assert [level.shape for level in levels(tmp_path / "ids.tif")] == level_shapes(shape)
    np.testing.assert_array_equal(levels(tmp_path / "ids.tif")[0], ids)


@pytest.mark.parametrize("ome", [False, True])
def test_the_same_ids_give_the_same_bytes(tmp_path: Path, ome: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    write_class_map(tmp_path / "a.tif", IDS.shape, reader(IDS), mpp=(0.5, 0.5), ome=ome)
    monkeypatch.setattr(pyramids, "_IN_MEMORY", 1)
    write_class_map(tmp_path / "b.tif", IDS.shape, reader(IDS), mpp=(0.5, 0.5), ome=ome, rows=512)
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()


def test_large_maps_have_64_bit_offsets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyramids, "CLASSIC", 1000)
    write_class_map(tmp_path / "a.tif", IDS.shape, reader(IDS))
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.is_bigtiff
    np.testing.assert_array_equal(levels(tmp_path / "a.tif")[0], IDS)


def test_a_band_at_a_time_is_asked_for_in_whole_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyramids, "_ROWS_PIXELS", 2 * 512 * IDS.shape[1])
    asked = []

    def read(*box: int) -> NDArray[Any]:
        asked.append(box)
        return reader(IDS)(*box)

    write_class_map(tmp_path / "a.tif", IDS.shape, read)
    assert asked == [(0, 0, 1024, 2311), (1024, 0, 1777, 2311)]


def test_tiles_of_one_class_are_encoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = []
    encode = pyramids._encode
    monkeypatch.setattr(pyramids, "_encode", lambda tile: encoded.append(tile) or encode(tile))
    write_class_map(tmp_path / "a.tif", (3000, 3000), lambda y0, x0, y1, x1: np.full((y1 - y0, x1 - x0), 2, np.uint8))
    assert len(encoded) == len(level_shapes((3000, 3000)))


def test_what_goes_wrong_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"

    def fails(y0: int, x0: int, y1: int, x1: int) -> NDArray[Any]:
        if y0:
            raise OSError("gone")
        return IDS[y0:y1, x0:x1]

    with pytest.raises(OSError, match="gone"):
        write_class_map(path, IDS.shape, fails, rows=512)
    with pytest.raises(InputError, match=r"a.tif: class ids from 0 to 300 do not fit uint8; write them as uint16"):
        write_class_map(path, (4, 4), lambda *_: np.array([[0, 0, 0, 300]] * 4))
    with pytest.raises(InputError, match=r"rows 0 to 4 must be \(4, 4\) class ids, not \(4, 3\) of int64"):
        write_class_map(path, (4, 4), lambda *_: np.zeros((4, 3), np.int64))
    with pytest.raises(InputError, match="uint8 or uint16, not as int32"):
        write_class_map(path, (4, 4), reader(IDS), np.int32)
    with pytest.raises(InputError, match="there is no folder"):
        write_class_map(tmp_path / "none" / "a.tif", (4, 4), reader(IDS))
    assert list(tmp_path.iterdir()) == []


def test_regions_resume_and_give_the_same_bytes(tmp_path: Path) -> None:
    output, plain = tmp_path / "ids.tif", tmp_path / "plain.tif"
    regions = Regions.open(output, IDS.shape, key="one", side=512)
    assert len(regions) == 20
    for i in list(regions.missing())[:13]:
        y0, x0, y1, x1 = regions.box(i)
        regions.put(i, IDS[y0:y1, x0:x1])
    (regions.folder / ".000014-12345678.zst").write_bytes(b"half")
    file = regions.folder / "000005.zst"
    file.write_bytes(file.read_bytes()[:-1])
    regions = Regions.open(output, IDS.shape, key="one", side=512, resume=True)
    assert list(regions.missing()) == [5, *range(13, 20)]
    with pytest.raises(InputError, match=r"000005.zst: missing or damaged; run again with --resume"):
        write_class_map(output, IDS.shape, regions.read)
    for i in regions.missing():
        y0, x0, y1, x1 = regions.box(i)
        regions.put(i, IDS[y0:y1, x0:x1])
    write_class_map(output, IDS.shape, regions.read, rows=1024)
    regions.remove()
    write_class_map(plain, IDS.shape, reader(IDS))
    assert output.read_bytes() == plain.read_bytes()
    assert sorted(tmp_path.iterdir()) == [output, plain]


def test_regions_of_another_run_are_not_mixed_in(tmp_path: Path) -> None:
    regions = Regions.open(tmp_path / "a.tif", (64, 64), key="one", side=64)
    regions.put(0, np.ones((64, 64), np.uint8))
    for change in ({"key": "two"}, {"side": 32}, {"dtype": np.uint16}, {"channels": (3,)}):
        with pytest.raises(InputError, match=r"a.tif.part: holds parts of another run"):
            Regions.open(tmp_path / "a.tif", (64, 64), **{"key": "one", "side": 64, "resume": True, **change})
    assert Regions.open(tmp_path / "a.tif", (64, 64), key="one", side=64, resume=True).done(0)
    assert not Regions.open(tmp_path / "a.tif", (64, 64), key="two", side=64).done(0)


def test_regions_hold_any_values(tmp_path: Path) -> None:
    regions = Regions.open(tmp_path / "a", (70, 50), key="", side=32, dtype=np.float16, channels=(3,))
    values = RNG.random((70, 50, 3)).astype(np.float16)
    for i in range(len(regions)):
        y0, x0, y1, x1 = regions.box(i)
        regions.put(i, values[y0:y1, x0:x1])
    for box in [(0, 0, 70, 50), (31, 31, 33, 33), (40, 0, 41, 50), (0, 0, 32, 32)]:
        np.testing.assert_array_equal(regions.read(*box), values[box[0] : box[2], box[1] : box[3]])
    with pytest.raises(InputError, match=r"region 0 is not of shape \(2, 2, 3\) and type float16"):
        regions.put(0, values[:2, :2])
    with pytest.raises(InputError, match="cannot be created"):
        Regions.open(tmp_path / "none" / "a", (70, 50), key="")


_KILLED = """
import sys, time
import numpy as np
from pathlib import Path
from patchtree.io.pyramids import write_class_map
from patchtree.io.regions import Regions

output, shape = Path(sys.argv[1]), (3000, 2600)
ids = np.kron(np.random.default_rng(0).integers(0, 4, (60, 52)), np.ones((50, 50), int)).astype(np.uint8)
regions = Regions.open(output, shape, key="a", side=512, resume=True)
missing = list(regions.missing())
for i in missing:
    y0, x0, y1, x1 = regions.box(i)
    regions.put(i, ids[y0:y1, x0:x1])
    print(i, flush=True)
write_class_map(output, shape, regions.read)
regions.remove()
print("done", flush=True)
"""


def killed_until_done(tmp_path: Path, kills: int) -> None:
    """Run a writer again and again, killed at a random moment, until it comes to its end."""
    output, plain, rng = tmp_path / "ids.tif", tmp_path / "plain.tif", np.random.default_rng(kills)
    finished: list[str] = []
    for _ in range(kills):
        process = subprocess.Popen([sys.executable, "-c", _KILLED, output], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(rng.integers(1, 4))]
        time.sleep(rng.random() * 0.03)
        process.kill()
        lines += process.communicate()[0].splitlines()
        finished += [line.strip() for line in lines if line.strip()]
        assert output.exists() <= ((tmp_path / "ids.tif.part").exists() or "done" in finished)
    told = subprocess.run([sys.executable, "-c", _KILLED, output], stdout=subprocess.PIPE, text=True, check=True).stdout
    again = told.split()
    assert again[-1] == "done"
    assert not set(again[:-1]) & set(finished) or "done" in finished
    write = subprocess.run([sys.executable, "-c", _KILLED, plain], stdout=subprocess.PIPE, check=True)
    assert write.returncode == 0
    assert output.read_bytes() == plain.read_bytes()


def test_a_killed_writer_goes_on(tmp_path: Path) -> None:
    killed_until_done(tmp_path, 2)


@pytest.mark.slow
def test_a_writer_killed_many_times_goes_on(tmp_path: Path) -> None:
    killed_until_done(tmp_path, 20)


def test_tiles_known_to_be_of_one_class_are_not_looked_at(tmp_path: Path) -> None:
    ids = np.zeros((1500, 2000), np.uint8)
    ids[600:1500, 700:1700] = 2
    ids[1000, 1400:1410] = 1
    plain = np.array([[0, 0, 0, 0], [-1, -1, -1, -1], [-1, 2, -1, 0]])
    hidden = ids.copy()
    hidden[:512], hidden[1024:, 512:1024], hidden[1024:, 1536:] = 7, 7, 7
    ids[1024:, 512:1024], ids[1024:, 1536:] = 2, 0
    write_class_map(tmp_path / "seen.tif", ids.shape, lambda y0, x0, y1, x1: ids[y0:y1, x0:x1], rows=1024)
    read = lambda y0, x0, y1, x1: hidden[y0:y1, x0:x1]  # noqa: E731
    write_class_map(tmp_path / "known.tif", ids.shape, read, rows=1024, plain=plain.__getitem__)
    assert (tmp_path / "known.tif").read_bytes() == (tmp_path / "seen.tif").read_bytes()
