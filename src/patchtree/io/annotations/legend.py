"""What the classes of annotations stand for: labels of a data set, pixels without a label, or nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from patchtree.errors import InputError
from patchtree.io.annotations.shapes import UNCLASSIFIED, Annotations

IGNORE = "ignore"
_STAR = "*"  # ends the names of QuPath's classes that say what to do, not what there is


@dataclass(frozen=True)
class Legend:
    """What the classes of annotations stand for, and which is drawn over which.

    Attributes:
        names: a class and the label it stands for, for classes that are called differently.
        order: labels, later ones are drawn over earlier ones; those not named come first, in the file's order.
    """

    names: tuple[tuple[str, str], ...] = ()
    order: tuple[str, ...] = ()

    def read(self, annotations: Annotations, labels: Mapping[str, int]) -> tuple[Annotations, int]:
        """Name polygons as labels, in the order of drawing; also gives how many are left out as they tell no class.

        A class without a label of its own counts as the group around it. ``Ignore*`` is the label ``ignore``; what has
        no class, and QuPath's other classes with a star (``Region*``), are left out unless `names` or the labels have
        them.

        >>> import numpy as np
        >>> from patchtree.io.annotations import Polygon
        >>> drawn = Annotations(tuple(Polygon(name, (np.eye(3, 2),)) for name in ("_1", "Ignore*", "Region*")))
        >>> found, left_out = Legend((("_1", "tumour"),)).read(drawn, {"tumour": 1, "ignore": 255})
        >>> found.labels, left_out
        (('tumour', 'ignore'), 1)

        Args:
            annotations: of a slide.
            labels: name to id, with ``ignore``.

        Raises:
            InputError: a class is not among the labels.
        """
        meant = {name: self._meant(annotations, name, labels) for name in annotations.labels}
        kept = [replace(one, label=label) for one in annotations.polygons if (label := meant[one.label]) is not None]
        named = replace(annotations, polygons=tuple(kept)).draw_in_order(self.order)
        return named, len(annotations) - len(named)

    def _meant(self, annotations: Annotations, name: str, labels: Mapping[str, int]) -> str | None:
        names = dict(self.names)
        for group in (name, *annotations.groups.get(name, ())):
            label = names.get(group, group)
            if label in labels:
                return label
        if is_ignored(name):
            return IGNORE
        if tells_nothing(name):
            return None
        known = ", ".join(label for label in labels if label != IGNORE)
        raise InputError(
            f"{annotations.source}: class {name!r} is not among the labels ({known}); add it to dataset.json, or say "
            f'there what it stands for, {{"annotations": {{"{name}": "{next(iter(labels))}"}}}}'
        )


PLAIN = Legend()


def class_names(annotations: Iterable[Annotations]) -> list[str]:
    """List the classes of annotations where nobody has named them, sorted: of groups in groups the outermost."""
    found = {(name, *one.groups.get(name, ()))[-1] for one in annotations for name in one.labels}
    return sorted(name for name in found if not is_ignored(name) and not tells_nothing(name))


def is_ignored(name: str) -> bool:
    """Whether a class is that of pixels without a label.

    >>> is_ignored("Ignore*"), is_ignored("ignore"), is_ignored("Region*")
    (True, True, False)
    """
    return name.removesuffix(_STAR).lower() == IGNORE


def tells_nothing(name: str) -> bool:
    """Whether a class says nothing about what there is.

    >>> tells_nothing("Unclassified"), tells_nothing("Region*"), tells_nothing("Tumor")
    (True, True, False)
    """
    return name == UNCLASSIFIED or name.endswith(_STAR)
