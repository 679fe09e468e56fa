"""Task file → checked ``Task`` → ``FewShotPromptTemplate`` and the options of a reply; nothing here knows a model.

A task file holds all that a prompt is made of: instruction, shot and query templates, labels, shots, version.
"""

import re
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from langchain_core.prompts import FewShotPromptTemplate, PromptTemplate
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from chains.errors import TaskError

__all__ = [
    "MENTION", "TASKS_FOLDER", "Shot", "Task",
    "items_of", "labels_of", "load_task", "prompt_template", "to_prompt_text", "write_reply",
]  # fmt: skip

TASKS_FOLDER = Path(__file__).parent / "tasks"
MAX_SHOTS = 6
# One item of an entity reply; structure characters never occur inside a text (see to_prompt_text).
MENTION = re.compile(r"<([^<>\n]*)>\(([^()<>\n]*)\)")
# Look-alikes of one code point each, so that offsets in the prompt's text are offsets in the user's text.
LOOK_ALIKES = {ord("<"): "‹", ord(">"): "›"}


class Strict(BaseModel):
    """A frozen part of a task file; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_min_length=1)


class Shot(Strict):
    """A few-shot example: a text and the reply that it should get."""

    text: str
    reply: str


class Task(Strict):
    """A checked task file.

    ``labels`` maps each name in results to the word that the model reads and writes. ``kind`` says how a reply
    is read: ``language`` is one label word, ``entities`` a list of ``<text>(word)`` items or the word ``empty``.
    """

    name: str
    kind: Literal["language", "entities"]
    version: int = Field(ge=1)
    instruction: str
    shot: str
    query: str
    labels: dict[str, str] = Field(min_length=1)
    out_of_scope: str | None = None
    threshold: float | None = Field(default=None, ge=0, le=1)
    empty: str | None = None
    shots: tuple[Shot, ...] = Field(max_length=MAX_SHOTS)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key, template, fields in (("shot", self.shot, ["{text}", "{reply}"]), ("query", self.query, ["{text}"])):
            if re.findall(r"{[^{}]*}", template) != fields:
                raise ValueError(f"{key}: {template!r} must hold {' then '.join(fields)} once, and no other braces")
        if not self.shot.startswith(self.query) or self.query.endswith(" "):
            raise ValueError(
                "query: must be the beginning of 'shot', up to where the reply starts, without a last space"
            )
        words = [*self.labels.values(), *filter(None, [self.out_of_scope, self.empty])]
        if repeated := {word for word in words if words.count(word) > 1}:
            raise ValueError(f"labels: every word may stand for one label only, found {sorted(repeated)} twice")
        begun = [(a, b) for a in words for b in words if a != b and b.startswith(a)]
        if self.kind == "language" and begun:
            raise ValueError(f"labels: no word may be the beginning of another, as {begun[0][0]!r} of {begun[0][1]!r}")
        if self.kind == "language" and self.threshold is None:
            raise ValueError("threshold: a task of kind 'language' needs one, from 0 to 1")
        if self.kind == "entities" and self.empty is None:
            raise ValueError("empty: a task of kind 'entities' needs the word that means 'nothing found'")
        seen: set[str] = set()
        for number, shot in enumerate(self.shots, 1):
            if shot.text in seen:
                raise ValueError(f"shots: shot {number} repeats the text {shot.text!r}")
            seen.add(shot.text)
            self._check_reply(number, shot)
        shown = {word for word in self.labels.values() if any(word in shot.reply for shot in self.shots)}
        if self.shots and (missing := set(self.labels.values()) - shown):
            raise ValueError(f"shots: no shot shows the label {sorted(missing)}")
        return self

    def _check_reply(self, number: int, shot: Shot) -> None:
        words = set(self.labels.values())
        if self.kind == "language":
            if shot.reply not in words | {self.out_of_scope}:
                raise ValueError(f"shots: shot {number} has the label {shot.reply!r}, expected one of {sorted(words)}")
            return
        mentions = MENTION.findall(shot.reply)
        if shot.reply != self.empty and " ".join(f"<{text}>({word})" for text, word in mentions) != shot.reply:
            raise ValueError(
                f"shots: shot {number}: cannot read {shot.reply!r}, expected '<text>(type) …' or {self.empty!r}"
            )
        for text, word in mentions:
            if word not in words:
                raise ValueError(f"shots: shot {number} has the type {word!r}, expected one of {sorted(words)}")
            if text not in to_prompt_text(shot.text):
                raise ValueError(f"shots: shot {number} names {text!r}, which is not in its text")

    def pick_shots(self, k: int) -> tuple[Shot, ...]:
        """The first ``k`` shots; the file orders them so that every prefix is balanced over the labels."""
        if not 0 <= k <= len(self.shots):
            raise TaskError(f"{k} shots were asked for: task '{self.name}' has 0 to {len(self.shots)} of them.")
        return self.shots[:k]

    @property
    def reply_separator(self) -> str:
        """What stands between the query and the reply: a space that starts the reply, or nothing."""
        return self.shot[len(self.query) :].split("{reply}")[0]

    @property
    def reply_end(self) -> str:
        """What ends a reply in the prompt's layout."""
        return self.shot.split("{reply}")[1] or "\n"

    def name_of(self, word: str) -> str | None:
        """The label's name for a word that the model wrote, or ``None``."""
        return next((name for name, label in self.labels.items() if label == word), None)


@cache
def load_task(path: str | Path) -> Task:
    """The checked task of a file, or of a shipped task by its name (``language``, ``entities``).

    Raises:
        TaskError: the file cannot be read or breaks a rule; the message names the file and the key.
    """
    file = TASKS_FOLDER / f"{path}.yaml" if str(path).isidentifier() else Path(path)
    try:
        return Task.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"Cannot read the task file '{file}': {error}. Give the path of a UTF-8 YAML file.") from error
    except yaml.YAMLError as error:
        raise TaskError(f"The task file '{file}' is not YAML: {error}. Compare chains/tasks/language.yaml.") from error
    except ValidationError as error:
        raise TaskError(f"The task file '{file}' breaks its rules. {_explain(error)}") from error


def _explain(error: ValidationError) -> str:
    """One sentence per broken rule, each with its key."""
    sentences = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        sentences.append(f"{key}: {message}." if key else f"{message}.")
    return " ".join(sentences)


def to_prompt_text(text: str) -> str:
    """The text as a prompt may hold it: one line, no ``<`` or ``>``, code point by code point.

    Line breaks and control characters become spaces and angle brackets become look-alikes, so no text can end its
    line, close its bracket or pose as a shot. The length is unchanged: offsets into one are offsets into the other.
    """
    if text.isprintable():
        return text.translate(LOOK_ALIKES)
    return "".join(
        " " if unicodedata.category(char) in {"Cc", "Zl", "Zp", "Cs"} else char for char in text.translate(LOOK_ALIKES)
    )


def write_reply(mentions: list[tuple[str, str]], empty: str) -> str:
    """The reply that names ``mentions``, (surface text, type word) each, in order; ``empty`` when there are none."""
    return " ".join(f"<{to_prompt_text(text)}>({word})" for text, word in mentions) or empty


def prompt_template(task: Task, k: int) -> FewShotPromptTemplate:
    """The prompt of ``task`` with ``k`` shots and one variable, ``text`` (already passed through ``to_prompt_text``).

    ``FewShotPromptTemplate`` formats shots twice, so braces inside them are doubled here.
    """

    def escape(value: str) -> str:
        return value.replace("{", "{{").replace("}", "}}")

    return FewShotPromptTemplate(
        prefix=escape(task.instruction),
        examples=[
            {"text": escape(to_prompt_text(shot.text)), "reply": escape(shot.reply)} for shot in task.pick_shots(k)
        ],
        example_prompt=PromptTemplate.from_template(task.shot),
        suffix=task.query,
        example_separator="\n",
        input_variables=["text"],
    )


def labels_of(task: Task) -> dict[str, Any]:
    """What a language chain binds to its ``llm`` as ``pipeline_kwargs``: the label words to score."""
    words = [*task.labels.values(), *filter(None, [task.out_of_scope])]
    return {"labels": {"query": task.query, "words": [task.reply_separator + word for word in words]}}


def items_of(task: Task) -> dict[str, Any]:
    """What an entity chain binds to its ``llm`` as ``pipeline_kwargs``: all that a grounded reply is made of."""
    return {
        "items": {
            "query": task.query,
            "separator": task.reply_separator,
            "empty": task.empty,
            "words": list(task.labels.values()),
            "end": task.reply_end,
        }
    }
