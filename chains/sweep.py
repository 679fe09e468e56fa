"""What shots cost and bring: a gold set answered with 0, 1, … of them → F1 and seconds per text.

It takes as long as several evaluations, so it runs on a thread of its own, which whoever started it looks at and may
stop; the scores that are done by then stay.
"""

import logging
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chains.errors import ChainError
from chains.evaluation import read_gold
from chains.metrics import entity_scores, language_scores
from chains.prompts import Task, prompt_template
from chains.queue import Caller, asking

if TYPE_CHECKING:
    from chains.registry import Model

__all__ = ["SCORES", "ShotScore", "Sweep"]

CHUNK = 16  # texts between two looks at whether to stop
LOG = logging.getLogger(__name__)
# The headline of each kind of task, and its words.
SCORES = {"language": ("macro_f1", "macro F1"), "entities": ("micro_f1", "micro F1")}


@dataclass(frozen=True)
class ShotScore:
    """What ``shots`` examples bring on a gold set and cost: ``f1`` from 0 to 1, ``seconds`` per text (the
    median over parts of the set, since others may use the machine), and the ``tokens`` of the prompt around a text."""

    shots: int
    f1: float
    seconds: float
    tokens: int


class Sweep:
    """``gold`` (texts and right answers, as ``evaluation.read_gold`` gives them) answered with every number of shots.

    ``scores`` grows as they come, ``done`` counts texts up to ``total``, ``error`` says why it ended early.
    """

    def __init__(self, model: "Model", task: Task, gold: Sequence[tuple[str, Any]]) -> None:
        self.model = model
        self.task = task
        self.gold = gold
        self.scores: list[ShotScore] = []
        self.done = 0
        self.total = len(gold) * (len(task.shots) + 1)
        self.error = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bloom-lens-shots", daemon=True)

    @classmethod
    def of_file(cls, model: "Model", task: Task, file: Path) -> "Sweep":
        """The sweep over a gold file; raises ``TableError`` if it does not fit the task."""
        return cls(model, task, read_gold(file, task.kind, task))

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """End after the current few texts."""
        self._stop.set()

    def wait(self) -> None:
        """Return when it has ended."""
        self._thread.join()

    @property
    def is_live(self) -> bool:
        """Whether it still runs."""
        return self._thread.is_alive()

    @property
    def is_stopped(self) -> bool:
        """Whether somebody has stopped it."""
        return self._stop.is_set()

    def _run(self) -> None:
        try:
            with asking(Caller("batch")):  # texts of people who wait go first
                for shots in range(len(self.task.shots) + 1):
                    if (score := self._score(shots)) is None:
                        return
                    self.scores.append(score)
        except ChainError as error:
            self.error = str(error)
        except Exception as problem:  # whoever looks must hear of it
            LOG.exception("Measuring shots failed")
            words = f"An unexpected {type(problem).__name__} ended the measurement: {problem}."
            self.error = f"{words} The log has the details."

    def _score(self, shots: int) -> ShotScore | None:
        """The score with so many shots, or ``None`` if it was stopped."""
        texts = [text for text, _ in self.gold]
        self._answer(texts[:1], shots)  # the shots are read once and then shared: that is no cost per text
        predicted: list[Any] = []
        rates: list[float] = []
        while len(predicted) < len(texts):
            if self._stop.is_set():
                return None
            part = texts[len(predicted) : len(predicted) + CHUNK]
            started = time.perf_counter()
            predicted += self._answer(part, shots)
            rates.append((time.perf_counter() - started) / len(part))
            self.done += len(part)
        gold = [answer for _, answer in self.gold]
        scores = (language_scores if self.task.kind == "language" else entity_scores)(gold, predicted)
        around = prompt_template(self.task, shots).format(text="")
        tokens = len(self.model.cut(around, self.task.query))
        return ShotScore(shots, float(scores[SCORES[self.task.kind][0]]), statistics.median(rates), tokens)

    def _answer(self, texts: list[str], shots: int) -> list[Any]:
        from chains.entities import find_entities_batch
        from chains.language import detect_languages

        if self.task.kind == "language":
            return [one.language for one in detect_languages(texts, self.model, task=self.task, shots=shots)]
        return [one.entities for one in find_entities_batch(texts, self.model, task=self.task, shots=shots)]
