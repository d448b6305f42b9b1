"""Reading a table with a line of column names."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from patchtree.errors import InputError


def read_table(path: str | os.PathLike[str]) -> tuple[csv.DictReader[str], str]:
    """Read a table as CSV in UTF-8, separated by commas, semicolons or tabs.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "table.csv"
    >>> _ = path.write_text("name; label\\na; tumour\\n")
    >>> rows, first = read_table(path)
    >>> list(rows), first
    ([{'name': 'a', 'label': 'tumour'}], 'name; label')

    Returns:
        The rows by column, the names of columns without spaces around them, ``fieldnames`` empty if there are none; and
        the first line as it stands.

    Raises:
        InputError: the file cannot be read, or is no text in UTF-8.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read, {os.strerror(error.errno or 0).lower()}; check the file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is no text in UTF-8; save it as CSV in UTF-8") from error
    head = text.partition("\n")[0]
    rows = csv.DictReader(text.splitlines(), delimiter=max(",;\t", key=head.count), skipinitialspace=True)
    rows.fieldnames = [column.strip() for column in rows.fieldnames or ()]
    return rows, head.strip()


def refuse_more(where: str, row: Mapping[Any, Any]) -> None:
    """Refuse a row with more cells than there are columns: a comma without quotes would cut what it stands in.

    >>> refuse_more("labels.csv: line 2", {"name": "a", "label": "adenoma", None: ["tubular"]})
    Traceback (most recent call last):
    patchtree.errors.InputError: labels.csv: line 2 has more cells than there are columns ('tubular'); put what has \
the separator in it in quotes

    Args:
        where: names the line.
        row: as `read_table` gives it.

    Raises:
        InputError: it has.
    """
    more = [cell for cell in row.get(None) or () if cell.strip()]
    if more:
        raise InputError(
            f"{where} has more cells than there are columns ({', '.join(map(repr, more))}); put what has the separator "
            "in it in quotes"
        )
