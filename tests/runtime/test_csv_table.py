"""CSV files of columns; tests/training/test_results.py has those of rows."""

import io

import numpy as np
import pytest

from common.runtime.csv_table import write_columns


def test_columns_are_quoted_text_integers_floats_of_six_digits_and_empty_cells_for_nan():
    file = io.BytesIO()
    columns = {"class": ["a, b", 'a "b"', "天"], "n": np.array([1, 2, 3]), "x": np.array([100 / 3, np.nan, 1e-9])}
    write_columns(file, columns)
    assert file.getvalue().decode() == 'class,n,x\n"a, b",1,33.3333\n"a ""b""",2,\n天,3,1e-09\n'
    with pytest.raises(ValueError, match="shorter"):
        write_columns(file, {"a": [1, 2], "b": [1]})
