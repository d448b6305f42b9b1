"""Reading a table with a line of column names."""

from __future__ import annotations

import csv
import os
from pathlib import Path

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
