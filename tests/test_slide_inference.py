from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import tifffile
from numpy.typing import NDArray

from patchtree import InputError, Patcher, Patches, slide_inference
from patchtree.io.slides import open_slide
from patchtree.io.slides.base import Box, SlideReadError
from patchtree.runs import RunConfig
from patchtree.slide_inference import predict_slide
from slides.fake import FakeSlide, make_slide

TOKENS = 1024
CONFIG = RunConfig(
    labels={"background": 0, "blob": 1},
    channels=1,
    mean=(0.0,),
    std=(1.0,),
    patcher=Patcher(8, detail="residual").to_dict(),
    density=1 / 256,
    model={},
)


@dataclass(eq=False)
class Identity:
    """Predicts what the pixels say: 255 is class 1 for sure."""

    config: RunConfig = CONFIG
    smooth: bool = True
    seen: list[Patches] = field(default_factory=list)
    fails_at: int | None = None

    def in_patches(self, patches: Patches) -> NDArray[np.float32]:
        if len(self.seen) == self.fails_at:
            raise KeyboardInterrupt
        self.seen.append(patches)
        share = patches.pixels[..., 0] / np.float32(255)
        return np.stack([1 - share, share], axis=-1)

    def check(self, channels: int, dtype: np.dtype[Any]) -> None:
        if channels != 1:
            raise InputError(f"the image has {channels} channels, the run was trained on 1; convert it")


def blobs(shape: tuple[int, int] = (1500, 1600), seed: int = 0) -> NDArray[np.uint8]:
    """Smooth blobs on black, with glass to the right, ``(H, W, 1)``."""
    import cv2

    rng = np.random.default_rng(seed)
    noise = cv2.GaussianBlur(rng.standard_normal(shape), (0, 0), 12)
    image = np.clip(127.5 + 100 * noise / noise.std(), 0, 255)
    image[:, shape[1] * 2 // 3 :] = 0
    return np.rint(image).astype(np.uint8)[..., None]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slide_inference, "_SIDE", 512)
    monkeypatch.setattr(slide_inference, "_CELL", 64)


@pytest.fixture(scope="module")
def image() -> NDArray[np.uint8]:
    return blobs()


@pytest.fixture
def slide(image: NDArray[np.uint8]) -> FakeSlide:
    return make_slide(image, [0, 1, 2, 3, 4], mpp=(0.5, 0.5))


def read(path: Path) -> NDArray[np.uint8]:
    ids: NDArray[np.uint8] = tifffile.imread(path)
    return ids


def test_no_seams_where_windows_meet(slide: FakeSlide, image: NDArray[np.uint8], tmp_path: Path) -> None:
    predictor = Identity()
    found = predict_slide(predictor, slide, tmp_path / "ids.tif", tokens=TOKENS)
    ids = read(tmp_path / "ids.tif")
    truth = image[..., 0] > 127
    wrong = ids != truth
    assert found["windows"] == len(predictor.seen) > 8
    windows = slide_inference.plan_windows(*tissue(slide), 1 / 256, TOKENS)
    border = np.zeros(truth.shape, bool)
    for window in windows:
        y0, x0, y1, x1 = window.box
        for row in (y0, y1):
            border[max(row - 8, 0) : row + 8, x0:x1] |= 0 < row < truth.shape[0]
        for column in (x0, x1):
            border[y0:y1, max(column - 8, 0) : column + 8] |= 0 < column < truth.shape[1]
    glass = np.zeros(truth.shape, bool)
    glass[:, 1000:] = True
    assert wrong[~glass].mean() < 0.02
    assert wrong[border & ~glass].mean() <= wrong[~border & ~glass].mean() * 1.1 + 1e-3
    assert not ids[:, 1200:].any()
    assert found["pixels"] == {"background": int((ids == 0).sum()), "blob": int((ids == 1).sum())}


def tissue(slide: FakeSlide) -> tuple[NDArray[np.bool_], int, tuple[int, int]]:
    from patchtree.slides.halved import Halved, threads

    with threads(1) as pool:
        return *slide_inference.find_tissue(Halved(slide), pool, 8), slide.shape


def test_every_window_sees_the_whole_slide_within_the_budget(slide: FakeSlide, tmp_path: Path) -> None:
    predictor = Identity()
    predict_slide(predictor, slide, tmp_path / "ids.tif", tokens=TOKENS)
    for patches in predictor.seen:
        assert patches.tree.shape == slide.shape
        assert len(patches) <= TOKENS
        # Fine in one place only, but nowhere as coarse as a single cell for the rest.
        assert patches.tree.level.min() <= 1
        assert np.median(patches.tree.level) <= 2
        assert (patches.tree.level == 4).sum() > 20
        assert patches.tree.level.max() < patches.tree.max_level
        assert patches.pixels.shape == (len(patches), 8, 8, 1)


def test_one_sequence_where_it_resolves_all_tissue(slide: FakeSlide, image: NDArray[np.uint8], tmp_path: Path) -> None:
    predictor = Identity()
    found = predict_slide(predictor, slide, tmp_path / "ids.tif", tokens=20000)
    [patches] = predictor.seen
    assert found["windows"] == 1
    assert 5000 < len(patches) <= 9375
    assert (read(tmp_path / "ids.tif") != (image[..., 0] > 127)).mean() < 0.02
    assert [path.name for path in tmp_path.iterdir()] == ["ids.tif"]


def test_an_empty_slide_costs_nothing(tmp_path: Path) -> None:
    predictor = Identity()
    slide = make_slide(np.full((1000, 900, 1), 7, np.uint8), [0, 2])
    found = predict_slide(predictor, slide, tmp_path / "ids.tif")
    assert (found["windows"], found["tissue"], predictor.seen) == (0, 0.0, [])
    assert found["pixels"] == {"background": 900_000, "blob": 0}
    assert not read(tmp_path / "ids.tif").any()


def test_tiny_slides(tmp_path: Path) -> None:
    for shape in ((1, 1), (8, 8), (9, 30), (70, 65)):
        slide = FakeSlide([np.full((*shape, 1), 255, np.uint8)], [(1.0, 1.0)])
        slide.arrays[0][0] = 0
        predict_slide(Identity(), slide, tmp_path / "ids.tif")
        assert read(tmp_path / "ids.tif").shape == shape


@pytest.mark.parametrize("tokens", [TOKENS, 20000])
def test_any_number_of_workers_gives_the_same_bytes(slide: FakeSlide, tokens: int, tmp_path: Path) -> None:
    seen = []
    for workers in (1, 4):
        predictor = Identity()
        predict_slide(predictor, slide, tmp_path / f"{workers}.tif", tokens=tokens, workers=workers)
        seen.append(predictor.seen)
    assert (tmp_path / "1.tif").read_bytes() == (tmp_path / "4.tif").read_bytes()
    for one, other in zip(*seen, strict=True):
        assert one.tree == other.tree
        np.testing.assert_array_equal(one.pixels, other.pixels)


def test_how_far_it_is_is_told(slide: FakeSlide, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    options: dict[str, Any] = {"tokens": TOKENS, "probabilities": tmp_path / "ids.zarr"}
    with pytest.raises(KeyboardInterrupt):
        predict_slide(Identity(fails_at=2), slide, tmp_path / "ids.tif", **options)
    found = predict_slide(
        Identity(), slide, tmp_path / "ids.tif", resume=True, progress=lambda *now: told.append(now), **options
    )
    steps = {what: [now[1:] for now in told if now[0] == what] for what, _, _ in told}
    assert list(steps) == ["windows", "writing", "probabilities"]
    assert steps["windows"] == [(done, found["windows"]) for done in range(2, found["windows"] + 1)]
    for what in ("writing", "probabilities"):
        total = steps[what][0][1]
        assert steps[what] == [(done, total) for done in range(1, total + 1)]


@pytest.mark.parametrize("probabilities", [False, True])
def test_a_run_that_was_stopped_goes_on_without_doing_a_window_twice(
    slide: FakeSlide, probabilities: bool, tmp_path: Path
) -> None:
    def run(name: str, predictor: Identity, **options: Any) -> dict[str, Any]:
        shares = tmp_path / f"{name}.zarr" if probabilities else None
        return predict_slide(predictor, slide, tmp_path / f"{name}.tif", tokens=TOKENS, probabilities=shares, **options)

    expected = run("whole", Identity())
    done = 0
    for stop in (1, 3, 0, 2):
        predictor = Identity(fails_at=stop)
        with pytest.raises(KeyboardInterrupt):
            run("parts", predictor, resume=True)
        assert len(predictor.seen) == stop
        assert not (tmp_path / "parts.tif").exists()
        done += stop
    predictor = Identity()
    assert run("parts", predictor, resume=True) == expected
    assert done + len(predictor.seen) == expected["windows"]
    assert (tmp_path / "parts.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()
    names = ["parts.tif", "whole.tif", *(["parts.zarr", "whole.zarr"] if probabilities else [])]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    if probabilities:
        one, other = (open_slide(tmp_path / f"{name}.zarr") for name in ("whole", "parts"))
        values = one.read(0, 0, 0, *one.shape)
        np.testing.assert_array_equal(values, other.read(0, 0, 0, *other.shape))
        ids = read(tmp_path / "whole.tif")
        sure = values.max(-1) > 128
        np.testing.assert_array_equal(values.argmax(-1)[sure], ids[sure])


def test_what_was_begun_otherwise_is_not_gone_on_with(slide: FakeSlide, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        predict_slide(Identity(fails_at=2), slide, tmp_path / "ids.tif", tokens=TOKENS, key="one")
    with pytest.raises(InputError, match=r"ids\.tif\.part: holds parts of another run"):
        predict_slide(Identity(), slide, tmp_path / "ids.tif", tokens=TOKENS, key="other", resume=True)
    predictor = Identity()
    found = predict_slide(predictor, slide, tmp_path / "ids.tif", tokens=TOKENS, key="other")
    assert len(predictor.seen) == found["windows"]


def test_a_damaged_part_is_done_again(slide: FakeSlide, tmp_path: Path) -> None:
    predict_slide(Identity(), slide, tmp_path / "whole.tif", tokens=TOKENS)
    with pytest.raises(KeyboardInterrupt):
        predict_slide(Identity(fails_at=6), slide, tmp_path / "ids.tif", tokens=TOKENS)
    parts = [*(tmp_path / "ids.tif.part").glob("window-*.npz"), *(tmp_path / "ids.tif.part").glob("*.zst")]
    assert len(parts) > 2
    for part in parts:
        data = bytearray(part.read_bytes())
        data[len(data) // 2] ^= 255
        part.write_bytes(data)
    predict_slide(Identity(), slide, tmp_path / "ids.tif", tokens=TOKENS, resume=True)
    assert (tmp_path / "ids.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()


def test_programs_open_what_is_written(slide: FakeSlide, tmp_path: Path) -> None:
    predict_slide(Identity(), slide, tmp_path / "plain.tif", tokens=TOKENS)
    predict_slide(Identity(), slide, tmp_path / "ids.ome.tif", tokens=TOKENS, ome=True)
    ids = read(tmp_path / "plain.tif")
    np.testing.assert_array_equal(read(tmp_path / "ids.ome.tif"), ids)
    with openslide.OpenSlide(tmp_path / "plain.tif") as opened:
        assert opened.level_dimensions == ((1600, 1500), (800, 750), (400, 375))
        assert float(opened.properties["openslide.mpp-x"]) == pytest.approx(0.5)
        region = np.asarray(opened.read_region((100, 200), 0, (300, 400)))
        np.testing.assert_array_equal(region[..., 0], ids[200:600, 100:400])
    with tifffile.TiffFile(tmp_path / "ids.ome.tif") as file:
        assert file.is_ome
        assert len(file.series[0].levels) == 3
        assert 'PhysicalSizeX="0.5"' in (file.ome_metadata or "")


def test_the_finest_resolution_wanted(slide: FakeSlide, tmp_path: Path) -> None:
    predictor = Identity()
    predict_slide(predictor, slide, tmp_path / "ids.tif", min_mpp=2.0, tokens=TOKENS)
    [patches] = predictor.seen
    assert patches.tree.level.min() >= 2
    assert len(patches) < 700
    with pytest.raises(InputError, match="has no pixel size"):
        predict_slide(Identity(), make_slide(blobs((300, 300)), [0]), tmp_path / "ids.tif", min_mpp=2.0)


def test_another_kind_of_image_is_refused(tmp_path: Path) -> None:
    slide = make_slide(np.zeros((300, 300, 3), np.uint8), [0])
    with pytest.raises(InputError, match=r"^fake\.tif: the image has 3 channels"):
        predict_slide(Identity(), slide, tmp_path / "ids.tif")
    assert not list(tmp_path.iterdir())


def test_an_unreadable_tile_is_named_and_nothing_is_written(slide: FakeSlide, tmp_path: Path) -> None:
    read_whole = slide._read

    def broken(level: int, box: Box) -> NDArray[Any]:
        if level == 0 and box[0] <= 700 < box[2] and box[1] <= 500 < box[3]:
            raise SlideReadError("fake.tif", level, box, "a bad marker")
        return read_whole(level, box)

    slide._read = broken  # type: ignore[method-assign]
    with pytest.raises(InputError, match=r"fake\.tif: level 0, rows 640 to .* cannot be read \(a bad marker\)"):
        predict_slide(Identity(), slide, tmp_path / "ids.tif", tokens=TOKENS)
    assert not (tmp_path / "ids.tif").exists()
    slide._read = read_whole  # type: ignore[method-assign]
    predict_slide(Identity(), slide, tmp_path / "ids.tif", tokens=TOKENS, resume=True)
    predict_slide(Identity(), slide, tmp_path / "whole.tif", tokens=TOKENS)
    assert (tmp_path / "ids.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()


def test_a_full_disk(slide: FakeSlide, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(InputError, match=r"window-000000\.npz: cannot be written, file too large"):
            predict_slide(Identity(), slide, tmp_path / "ids.tif", tokens=TOKENS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(path.name for path in (tmp_path / "ids.tif.part").iterdir()) == ["plan.json"]
    predict_slide(Identity(), slide, tmp_path / "ids.tif", tokens=TOKENS, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["ids.tif"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_read_only(slide: FakeSlide, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot be created, Permission denied"):
        predict_slide(Identity(), slide, tmp_path / "ids.tif")


def test_killed_at_random_moments(tmp_path: Path) -> None:
    """In a process of its own, which forks before it has any threads."""
    script = tmp_path / "killed.py"
    script.write_text(_KILLED)
    out = tmp_path / "out"
    out.mkdir()
    done = subprocess.run(
        [sys.executable, script, str(out)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["kills"] == 20
    assert figures["half_written"] == 0
    # A window may be lost that was predicted but not kept when the kill came: at most one each time.
    assert figures["windows"] <= figures["predicted"] <= figures["windows"] + 20
    assert (out / "parts.tif").read_bytes() == (out / "whole.tif").read_bytes()
    assert sorted(path.name for path in out.iterdir()) == ["calls", "parts.tif", "whole.tif"]


_KILLED = """
import json, os, random, signal, sys, time
from pathlib import Path

import cv2

from patchtree import slide_inference
from slides.fake import make_slide
from test_slide_inference import Identity, TOKENS, blobs

cv2.setNumThreads(0)
slide_inference._SIDE, slide_inference._CELL = 512, 64
out = Path(sys.argv[1])
slide = make_slide(blobs((1100, 1300)), [0, 1, 2, 3, 4], mpp=(0.5, 0.5))
calls = out / "calls"
calls.write_text("")


class Slow(Identity):
    def in_patches(self, patches):
        time.sleep(0.03)
        with calls.open("a") as file:
            file.write("x")
        return super().in_patches(patches)


def run(name, predictor, **options):
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        found = slide_inference.predict_slide(predictor, slide, out / f"{name}.tif", tokens=TOKENS, **options)
        (out / "found").write_text(json.dumps(found))
        code = 0
    finally:
        os._exit(code)


started = time.perf_counter()
assert os.waitpid(run("whole", Slow()), 0)[1] == 0
spent = time.perf_counter() - started
calls.write_text("")
kills = half_written = 0
rng = random.Random(0)
while kills < 20:
    pid = run("parts", Slow(), resume=True)
    time.sleep(rng.uniform(0, 0.3) * spent)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        kills += 1
    parts = out / "parts.tif"
    if parts.exists():  # whole before 20 kills: go on with a new one
        half_written += parts.read_bytes() != (out / "whole.tif").read_bytes()
        parts.unlink()
        calls.write_text("")
assert os.waitpid(run("parts", Slow(), resume=True), 0)[1] == 0
found = json.loads((out / "found").read_text())
(out / "found").unlink()
print(json.dumps({"kills": kills, "half_written": half_written, "windows": found["windows"],
                  "predicted": len(calls.read_text())}))
"""
