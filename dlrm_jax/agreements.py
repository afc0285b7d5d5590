"""What is to be done after a step, of which one of several processes may know."""

from __future__ import annotations

import collections
from collections.abc import Sequence

import jax
import numpy as np

from dlrm_jax import processes


class Agreements:
    """`all_agreed` once a step, whose answers are read some steps later.

    An exchange waits for the step that the devices compute before it. A process that reads its
    answer at once can't start the next step meanwhile. All processes read the same answers at the
    same steps, so that what they do is the same, too.

    Args:
        behind: number of steps between a question and its answer; one process needs none.
        questions: number of values.
    """

    def __init__(self, behind: int, questions: int):
        self.behind = behind if processes.is_distributed() else 0
        self._asked: collections.deque[Sequence[int] | jax.Array] = collections.deque()
        self._old = [0] * questions  # answers to come that were asked for before the last action

    def ask(self, values: Sequence[int]) -> None:
        """Tells the others this process's values, without waiting for theirs."""
        if processes.is_distributed():
            self._asked.append(processes.begun("largest", np.array(values, np.int32)))
        else:
            self._asked.append(values)

    def answers(self) -> list[int]:
        """The largest values over all processes of the oldest question.

        After an answer above 0, those to the questions that were asked before it are 0: they are
        about what has been done since then.
        """
        found = np.asarray(self._asked.popleft()).tolist()
        for i, value in enumerate(found):
            if self._old[i]:
                self._old[i], found[i] = self._old[i] - 1, 0
            elif value:
                self._old[i] = self.behind
        return found
