"""Reply text → scores, label, or mentions; knows nothing of models."""

import json
import math
import re

from langchain_core.exceptions import OutputParserException
from langchain_core.output_parsers import BaseOutputParser

from chains.prompts import MENTION, Task
from chains.schema import UNKNOWN, Detection, Mention, Reply

__all__ = ["LabelParser", "MentionParser", "ScoreParser"]


class ScoreParser(BaseOutputParser[Detection]):
    """Read the reply of forced decoding: a JSON object of label word → log-probability in nats.

    The out-of-scope word's probability becomes that of ``unknown``. The language is the likeliest label if it
    reaches the task's threshold and beats ``unknown``, else ``unknown``.
    """

    task: Task

    def parse(self, text: str) -> Detection:
        try:
            scores = {str(word): float(score) for word, score in json.loads(text).items()}
            top = max(scores.values())
            if not all(score < math.inf for score in scores.values()) or top == -math.inf:
                raise ValueError("a score is not a number")  # NaN is smaller than nothing
        except (ValueError, AttributeError, TypeError, RecursionError) as error:
            raise OutputParserException(
                ValueError(f"Cannot read {text[:200]!r} as label scores."), llm_output=text
            ) from error
        names = {word: self.task.name_of(word) or UNKNOWN for word in scores}
        weights = {name: 0.0 for name in [*self.task.labels, UNKNOWN]}
        for word, score in scores.items():
            weights[names[word]] += math.exp(score - top)
        total = sum(weights.values())
        probabilities = {name: weight / total for name, weight in weights.items()}
        return decide(self.task, probabilities, {names[word]: score for word, score in scores.items()}, text)


def decide(task: Task, probabilities: dict[str, float], logprobs: dict[str, float], *replies: str) -> Detection:
    """The detection that follows from the labels' probabilities under the task's threshold."""
    best = max(task.labels, key=lambda name: probabilities[name])
    threshold = task.threshold or 0.0
    sure = probabilities[best] >= threshold and probabilities[best] > probabilities[UNKNOWN]
    language = best if sure else UNKNOWN
    return Detection(
        language=language,
        probability=probabilities[language],
        probabilities=probabilities,
        logprobs=logprobs,
        threshold=threshold,
        replies=replies,
    )


class LabelParser(BaseOutputParser[Detection]):
    """Read a generated reply: the first label word in it, as a whole word; none found means ``unknown``."""

    task: Task

    def parse(self, text: str) -> Detection:
        found = {}
        for name, word in self.task.labels.items():
            if match := re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE):
                found[name] = match.start()
        language = min(found, key=lambda name: found[name], default=UNKNOWN)
        return Detection(language=language, probability=None, way="plain", replies=(text,))


class MentionParser(BaseOutputParser[Reply]):
    """Read ``<Marie Curie>(person) <Paris>(location)`` as mentions, in reply order; the empty word gives none.

    Only the reply's first line counts: a model that goes on writes shots of its own. Items of another type are an
    error, and so is a reply that holds no item; an unfinished last item is dropped.
    """

    task: Task

    def parse(self, text: str) -> Reply:
        reply = text.strip().partition("\n")[0].strip()
        if reply == self.task.empty:
            return Reply(mentions=(), raw=text)
        items = [(surface.strip(), self.task.name_of(word.strip())) for surface, word in MENTION.findall(reply)]
        if not items or any(name is None or not surface for surface, name in items):
            kinds = ", ".join(self.task.labels.values())
            raise OutputParserException(
                ValueError(
                    f"Cannot read {reply[:200]!r} as entities: expected '<text>(type) …' with type one of {kinds}, or "
                    f"{self.task.empty!r}. Use more shots or the embedded model."
                ),
                llm_output=text,
            )
        return Reply(mentions=tuple(Mention(text=surface, type=str(name)) for surface, name in items), raw=text)
