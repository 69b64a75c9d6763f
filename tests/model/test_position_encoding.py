"""Position tables for maps of other sizes; what they add to a model is tested with the attention and the backbone."""

import numpy as np
import paddle

from common.flops import count_layer_flops
from common.layers.position_encoding import ConditionalPositionEncoding, resample


def test_a_table_of_its_own_size_stays_itself():
    table = paddle.rand([2, 5, 7])
    assert resample(table, 5, 7) is table


def test_rows_stay_rows_and_columns_columns():
    """A slope stays one, nearly (Paddle's cubic keeps none exactly), but at the edges, where it goes on level."""
    rows, columns = np.indices((16, 24)) + 0.5
    found = resample(paddle.to_tensor(np.stack([rows / 16, columns / 24])), 32, 12).numpy()
    new_rows, new_columns = np.indices((32, 12)) + 0.5
    inner = np.s_[4:-4, 2:-2]
    np.testing.assert_allclose(found[0][inner], (new_rows / 32)[inner], atol=0.01)
    np.testing.assert_allclose(found[1][inner], (new_columns / 12)[inner], atol=0.01)


def test_the_convolution_alone_can_be_traced():
    assert count_layer_flops(ConditionalPositionEncoding(8), [1, 4, 5, 8]) == 4 * 5 * 8 * 9
