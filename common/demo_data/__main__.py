"""``python -m common.demo_data``: see :mod:`common.demo_data.wheels`."""

from ..runtime.command_line import run
from .wheels import main

run(main)
