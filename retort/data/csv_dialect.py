"""How a CSV file is written: its header tells what parts the fields."""

import csv
import re

DELIMITERS = ",\t;|"
MOST_CHARACTERS = 2**27
"""Of one field. An open quote would otherwise take the rest of a file into memory."""
_EXCEL = re.compile(r"sep=([,\t;|])\s*", re.IGNORECASE)
"""A first line by which Excel is told the delimiter."""

csv.field_size_limit(MOST_CHARACTERS)


def excel_delimiter(line: str) -> str | None:
    found = _EXCEL.fullmatch(line)
    return found[1] if found else None


def delimiter_of(header: str, *, is_tsv: bool) -> str:
    """What parts a header into most columns: comma, tab, semicolon or pipe; of equals the first of these, and in a file
    called .tsv the tab."""
    if is_tsv and "\t" in header:
        return "\t"
    return max(DELIMITERS, key=lambda sign: _num_columns(header, sign))


def _num_columns(header: str, delimiter: str) -> int:
    try:
        return len(next(csv.reader([header], delimiter=delimiter)))
    except csv.Error:
        return 0
