"""Metrics on patch pixels equal torchmetrics' and MONAI's on the painted prediction."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import DiceMetric, MeanIoU
from torch.nn import functional as F
from torchmetrics.functional.classification import (
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_jaccard_index,
)

from patchtree.errors import InputError
from patchtree.metrics import Confusion, confusion, dice, iou
from patchtree.patches import count_labels
from patchtree.tree import Tree, cover_level, grow

PATCH = 4
IGNORE = 255


def make_tree(shape: tuple[int, ...], rng: np.random.Generator) -> Tree:
    """A tree refined at random."""
    top = cover_level(shape, PATCH)
    return grow(shape, PATCH, top, lambda level, cells: (rng.random(len(cells)) < 0.7) | (level == top))


def make_scene(
    shape: tuple[int, ...], classes: int, ignored: float, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Prediction (N, p, p) and counts (N, p, p, K) of one image, the painted prediction and the mask (H, W)."""
    rng = np.random.default_rng(seed)
    tree = make_tree(shape, rng)
    mask = rng.integers(0, classes, shape)
    mask[rng.random(shape) < ignored] = IGNORE
    counts = count_labels(mask, tree, classes, ignore=IGNORE)
    prediction = np.where(rng.random(counts.shape[:-1]) < 0.5, counts.argmax(-1), rng.integers(0, classes))
    painted = tree.paint(prediction)
    return torch.from_numpy(prediction), torch.from_numpy(counts), torch.from_numpy(painted), torch.from_numpy(mask)


@settings(max_examples=50)
@given(
    shape=st.one_of(st.tuples(*[st.integers(1, 60)] * 2), st.tuples(*[st.integers(1, 12)] * 3)),
    classes=st.integers(2, 6),
    ignored=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 2**32 - 1),
)
def test_confusion_is_torchmetrics(shape: tuple[int, ...], classes: int, ignored: float, seed: int) -> None:
    prediction, counts, painted, mask = make_scene(shape, classes, ignored, seed)
    expected = multiclass_confusion_matrix(painted, mask, classes, ignore_index=IGNORE)
    table = confusion(prediction, counts)
    assert table.dtype == torch.float64
    assert table.tolist() == expected.tolist()


@pytest.mark.parametrize("ignored", [0.0, 0.3])
@pytest.mark.parametrize("shape", [(64, 64), (37, 91), (70, 3), (19, 14, 11)])
def test_dice_and_iou_are_torchmetrics(shape: tuple[int, ...], ignored: float) -> None:
    prediction, counts, painted, mask = make_scene(shape, 4, ignored, seed=1)
    table = confusion(prediction, counts)
    f1 = multiclass_f1_score(painted, mask, 4, average=None, ignore_index=IGNORE)
    jaccard = multiclass_jaccard_index(painted, mask, 4, average=None, ignore_index=IGNORE)
    torch.testing.assert_close(dice(table), f1, atol=1e-6, rtol=0, check_dtype=False)
    torch.testing.assert_close(iou(table), jaccard, atol=1e-6, rtol=0, check_dtype=False)


def test_dice_and_iou_are_monai_s() -> None:
    prediction, counts, painted, mask = make_scene((37, 91), 4, 0.0, seed=2)
    ours = confusion(prediction, counts)
    one_hot = [F.one_hot(ids, 4).movedim(-1, 0)[None] for ids in (painted, mask)]
    for metric, value in ((DiceMetric(reduction="none"), dice(ours)), (MeanIoU(reduction="none"), iou(ours))):
        torch.testing.assert_close(value, metric(*one_hot)[0], atol=1e-6, rtol=0, check_dtype=False)


def test_a_class_in_neither_is_nan() -> None:
    table = torch.tensor([[3.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    for metric, expected in ((dice, [6 / 7, float("nan"), 0]), (iou, [3 / 4, float("nan"), 0])):
        torch.testing.assert_close(metric(table), torch.tensor(expected), equal_nan=True)


def test_counts_stay_whole_beyond_single_precision() -> None:
    counts = torch.tensor([16777213.0, 1.0]).expand(1001, 2)
    table = confusion(torch.zeros(1001, dtype=torch.int64), counts)
    assert table.tolist() == [[16777213 * 1001, 0], [1001, 0]]


def test_other_shapes_are_refused() -> None:
    with pytest.raises(InputError, match=r"prediction is \(2, 4, 4\), counts \(2, 4, 5, 3\)"):
        confusion(torch.zeros(2, 4, 4, dtype=torch.int64), torch.zeros(2, 4, 5, 3))


def test_confusion_adds_up_over_batches() -> None:
    total = Confusion(classes=3).half()  # as a Lightning module's metrics are cast; the sums must not be
    expected = torch.zeros(3, 3, dtype=torch.float64)
    for seed in range(3):
        prediction, counts, *_ = make_scene((37, 20), 3, 0.1, seed)
        total.update(prediction, counts)
        expected += confusion(prediction, counts)
    assert total.compute().dtype == torch.float64
    assert torch.equal(total.compute(), expected)
    total.reset()
    assert total.table.sum() == 0


def test_confusion_is_summed_when_processes_meet() -> None:
    here, there = Confusion(classes=2), Confusion(classes=2)
    here.update(torch.tensor([0]), torch.tensor([[2.0, 1.0]]))
    there.update(torch.tensor([1]), torch.tensor([[4.0, 8.0]]))
    here.sync(dist_sync_fn=lambda table, group: [table, there.table], distributed_available=lambda: True)
    assert here.table.tolist() == [[2, 4], [1, 8]]


@pytest.mark.slow
def test_confusion_adds_up_over_processes(tmp_path: Path) -> None:
    code = f"""
import sys, torch
from patchtree.metrics import Confusion
rank = int(sys.argv[1])
torch.distributed.init_process_group("gloo", init_method="file://{tmp_path}/meet", rank=rank, world_size=2)
total = Confusion(classes=2)
for _ in range(1 + rank):  # processes may see unequal numbers of batches
    total.update(torch.tensor([rank]), torch.tensor([[2.0**24 - 1, 1.0]]))
print(total.compute().tolist())
torch.distributed.destroy_process_group()
"""
    runs = [subprocess.Popen([sys.executable, "-c", code, rank], stdout=subprocess.PIPE, text=True) for rank in "01"]
    expected = [[float(2**24 - 1), float(2 * (2**24 - 1))], [1.0, 2.0]]
    assert [run.communicate(timeout=60)[0].strip() for run in runs] == [str(expected)] * 2


def test_probabilities_are_no_prediction() -> None:
    with pytest.raises(InputError, match=r"give class ids, such as logits.argmax"):
        Confusion(classes=2).update(torch.full((1, 2), 0.9), torch.ones(1, 2, 2))
