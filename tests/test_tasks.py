"""The table of the tasks names parts that exist."""

from common.inference.predictor import Predictor
from common.tasks import TASKS
from common.training.config import TaskConfig
from common.training.task import Task


def test_every_part_of_every_task_exists():
    for task in TASKS.values():
        assert isinstance(task.config(), TaskConfig)
        assert issubclass(task.task(), Task)
        assert issubclass(task.predictor(), Predictor)
        assert callable(task.exportable())
        assert callable(task.build_model())
