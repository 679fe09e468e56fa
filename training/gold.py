"""Gold files for training and measuring, in the formats of ``chains.evaluation``; knows nothing of models."""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from chains.evaluation import TaskName, read_gold, tasks_of
from chains.prompts import load_task
from chains.schema import UNKNOWN, Mention
from chains.spans import list_mentions


@dataclass(frozen=True)
class Example:
    """A text and what the model should write: a label word, or mentions with their type words."""

    task: TaskName
    text: str
    answer: str | tuple[Mention, ...]


def read_examples(paths: Sequence[Path]) -> list[Example]:
    """The examples of all files, in order; ``unknown`` becomes the task's out-of-scope word.

    Raises:
        TableError: a file cannot be read, has answers to no task, or has a wrong answer.
    """
    labels = load_task("language")
    words = {**labels.labels, UNKNOWN: str(labels.out_of_scope)}
    types = load_task("entities").labels
    examples = []
    for path in paths:
        for task in tasks_of(path):
            if task == "language":
                examples += [Example(task, text, words[label]) for text, label in read_gold(path, "language")]
                continue
            for text, entities in read_gold(path, "entities"):
                mentions = (Mention(text=m.text, type=types[m.type]) for m in list_mentions(entities))
                examples.append(Example(task, text, tuple(mentions)))
    return examples


def key_of(text: str) -> str:
    """What two texts share that differ only in case, spaces, punctuation or Unicode form; a text of neither letters nor
    digits is its own key."""
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", text).casefold())) or text


def without_repeats(examples: Iterable[Example], held_out: Iterable[str]) -> list[Example]:
    """The examples whose text is none of ``held_out`` and, within its task, not there before (see ``key_of``)."""
    forbidden = {key_of(text) for text in held_out}
    seen: set[tuple[str, str]] = set()
    kept = []
    for example in examples:
        key = key_of(example.text)
        if key not in forbidden and (example.task, key) not in seen:
            seen.add((example.task, key))
            kept.append(example)
    return kept
