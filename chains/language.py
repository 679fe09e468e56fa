"""The language chain: ``prompt | llm | parser``, and its use on texts of any length."""

from collections.abc import Sequence
from typing import Any, Literal

from langchain_core.runnables import Runnable, RunnableLambda

from chains.errors import ReplyError
from chains.parsers import LabelParser, ScoreParser, decide
from chains.prompts import Task, labels_of, load_task, prompt_template, to_prompt_text
from chains.registry import Model
from chains.schema import UNKNOWN, Detection
from chains.windows import split_windows

__all__ = ["detect_language", "detect_languages", "language_chain"]

PLAIN_TOKENS = 8  # the longest label and its closing bracket
Way = Literal["forced", "plain"]


def language_chain(
    model: Model, *, task: Task | None = None, shots: int | None = None, way: Way = "forced"
) -> Runnable[dict[str, str], Detection]:
    """A chain from ``{"text": …}`` to a ``Detection``; ``shots`` defaults to the model's own number.

    A model that cannot score labels always answers the plain way, and the detection says so.
    """
    task = task or load_task("language")
    template = prompt_template(task, model.info.shots if shots is None else shots)
    prompt = RunnableLambda(clean) | template
    if way == "plain" or not model.can_score:
        options = model.plain_options(PLAIN_TOKENS)
        return prompt | model.llm.bind(pipeline_kwargs=options) | LabelParser(task=task)
    return prompt | model.llm.bind(pipeline_kwargs=labels_of(task)) | ScoreParser(task=task)


def clean(inputs: dict[str, str]) -> dict[str, str]:
    """A chain's input with its text made safe for a prompt."""
    return {"text": to_prompt_text(inputs["text"])}


def detect_language(
    text: str, model: Model, *, task: Task | None = None, shots: int | None = None, way: Way = "forced"
) -> Detection:
    """The language of one text; see ``detect_languages``."""
    return detect_languages([text], model, task=task, shots=shots, way=way)[0]


def detect_languages(
    texts: Sequence[str], model: Model, *, task: Task | None = None, shots: int | None = None, way: Way = "forced"
) -> list[Detection]:
    """The language of each text, in order.

    A text that does not fit the model is read in windows, and its probabilities are their mean, weighted by length;
    the plain way takes the language of most characters. An empty or white-space-only text is ``unknown``, without
    asking the model.

    Raises:
        ReplyError: a reply could not be read.
    """
    task = task or load_task("language")
    template = prompt_template(task, model.info.shots if shots is None else shots)
    pieces = [split_windows(text, model.count_tokens, model.info.window_tokens) for text in texts]
    inputs = [{"text": text[a:b]} for text, spans in zip(texts, pieces, strict=True) for a, b in spans]
    answers = iter(run(language_chain(model, task=task, shots=shots, way=way), inputs))
    detections = []
    for text, spans in zip(texts, pieces, strict=True):
        parts = [next(answers) for _ in spans]
        prompts = tuple(template.format(text=to_prompt_text(text[a:b])) for a, b in spans)
        detection = _join(task, parts, [b - a for a, b in spans])
        detections.append(detection.model_copy(update={"prompts": prompts}))
    return detections


def _join(task: Task, parts: list[Detection], lengths: list[int]) -> Detection:
    """One detection for a text from those of its windows; ``lengths`` in characters are their weights."""
    if not parts:
        return Detection(language=UNKNOWN, probability=None, way="empty")
    if len(parts) == 1:
        return parts[0]
    replies = [reply for part in parts for reply in part.replies]
    total = sum(lengths)
    if parts[0].way == "plain":
        share: dict[str, int] = {}
        for part, length in zip(parts, lengths, strict=True):
            share[part.language] = share.get(part.language, 0) + length
        language = max(share, key=lambda name: share[name])
        return Detection(language=language, probability=None, way="plain", replies=tuple(replies))

    def mean(values: list[dict[str, float]]) -> dict[str, float]:
        return {key: sum(v[key] * w for v, w in zip(values, lengths, strict=True)) / total for key in values[0]}

    return decide(task, mean([part.probabilities for part in parts]), mean([part.logprobs for part in parts]), *replies)


def run(chain: Runnable[dict[str, str], Any], inputs: list[dict[str, str]]) -> list[Any]:
    """``chain.batch`` with each different input computed once.

    Raises:
        ReplyError: the first reply that could not be read.
    """
    from langchain_core.exceptions import OutputParserException

    distinct = list({item["text"]: item for item in inputs}.values())
    answers = chain.batch(distinct, return_exceptions=True) if distinct else []
    for answer in answers:
        if isinstance(answer, OutputParserException):
            message = str(answer.args[0]) if answer.args else "A reply could not be read."
            raise ReplyError(message, answer.llm_output or "") from answer
        if isinstance(answer, BaseException):
            raise answer
    by_text = {item["text"]: answer for item, answer in zip(distinct, answers, strict=True)}
    return [by_text[item["text"]] for item in inputs]
