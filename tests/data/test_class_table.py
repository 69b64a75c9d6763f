"""Tables with one line per class."""

import numpy as np

from common.data.class_table import worst_table


def test_of_many_classes_the_worst_are_shown_and_the_others_are_counted():
    values = np.arange(40.0, 0.0, -1.0)
    values[39] = np.nan
    lines = worst_table([f"class{number}" for number in range(40)], {"F1": values}, "F1", "val").splitlines()
    assert lines[0] == "val, the 30 with the lowest F1 (10 others are left out)"
    assert [line.split() for line in lines[2:4]] == [["class38", "2.00"], ["class37", "3.00"]]
    assert len(lines) == 2 + 30
    few = worst_table(["b", "a"], {"F1": np.array([2.0, 1.0])}, "F1", "val").splitlines()
    assert [line.split()[0] for line in few] == ["val", "class", "b", "a"]
