"""Live progress, in two parts that may be on two machines.

The main worker of a run writes where it is to ``progress.json`` (:class:`ProgressWriter`, a callback of the engine; see
:mod:`~sensorlab.cluster.progress.state` for the file). The driver looks at the files once a second and shows them
(:class:`Ticker`): as one line that is rewritten in a terminal, as plain lines in a file or a job. :class:`RunLine` and
:class:`SweepLine` say what the line is.
"""

from sensorlab.cluster.progress.run_line import RunLine
from sensorlab.cluster.progress.sweep_line import SweepLine
from sensorlab.cluster.progress.ticker import Ticker
from sensorlab.cluster.progress.writer import ProgressWriter

__all__ = ["ProgressWriter", "RunLine", "SweepLine", "Ticker"]
