"""A model behind a server of the user's own, by the OpenAI *completions* protocol, which vLLM and others speak.

It takes what a chain binds to any ``llm`` (see ``chains.prompts``): ``labels`` are scored by the log-probabilities of
an echoed prompt, ``items`` and the plain way generate greedily. This is the one module that sends texts out of the
process: to the URL that the user gave, and no further, since redirects are not followed.

One request per text, ``CONCURRENT_REQUESTS`` at a time. Proxies come from the environment (``HTTP_PROXY``,
``NO_PROXY``), as the client library reads them. A server cuts prompts as it likes; one that takes ``<s>`` for a special
token reads a text that is just ``s`` wrongly.
"""

import json
import logging
import math
import weakref
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from langchain_core.language_models.llms import BaseLLM
from langchain_core.outputs import Generation, LLMResult
from pydantic import Field

from chains.errors import ChainError, ModelError, ReplyError

__all__ = ["PREFIX", "WINDOW_BYTES", "Address", "RemoteLLM", "connect", "fork_scores", "parse_address"]

PREFIX = "openai:"
CONCURRENT_REQUESTS = 8
# A silent server is given up after four times this long. The library waits 0.5 to 8 s between tries, or as long as the
# server asks for in Retry-After (up to two minutes), and tries again after 408, 409, 429, 5xx and broken connections.
TIMEOUT_S = 120.0
CONNECT_TIMEOUT_S = 10.0
MAX_RETRIES = 3
# A byte-level tokenizer makes at most one token of a byte. With six shots (up to 400 tokens) and the longest reply, a
# window of this many bytes fits BLOOM's 2,048 tokens whatever it holds.
WINDOW_BYTES = 1024
REPLY_TOKENS = 512
PROBE, PROBE_WORDS = "The train is", [" early", " late"]
# What servers answer that know no echo or no log-probabilities; some fail at it.
NO_ECHO = {400, 422, 500, 501}
REFUSED = {400, 413, 422}
MALFORMED = (AttributeError, IndexError, KeyError, TypeError, ValueError)
ADVICE = {
    401: "Set BLOOM_LENS_API_KEY to a key of this server.",
    403: "Set BLOOM_LENS_API_KEY to a key of this server.",
    404: "Give the URL up to where '/completions' follows (often '/v1'), and a model that '/models' there names.",
    429: "It has too much to do: go on later.",
}
LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Address:
    """Where a ``model`` is served: the ``url`` that ``/completions`` follows, with its ``host`` and port."""

    url: str
    host: str
    model: str


def parse_address(name: str) -> Address:
    """The address in a model's name, ``openai:<url>#<model>``.

    Raises:
        ModelError: it has another form, or holds credentials; these are not repeated.
    """
    url, _, model = name.removeprefix(PREFIX).partition("#")
    shown = "a name that may hold a secret" if set("@?") & set(name) else repr(name[:200])
    expected = (
        "Expected 'openai:<url>#<model>', such as 'openai:http://localhost:8000/v1#bigscience/bloomz-7b1'; a key "
        "comes from the environment variable BLOOM_LENS_API_KEY."
    )
    if "@" in url or "?" in url:
        raise ModelError(f"A server's URL may hold no user, password or query. {expected}")
    try:
        parts = urlsplit(url)
        is_valid = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port or an IPv6 address that is none
        is_valid = False
    if not is_valid or not model or not (url + model).isprintable() or set(" #") & set(url + model):
        raise ModelError(f"Cannot read {shown} as a model behind a server. {expected}")
    return Address(url.rstrip("/"), parts.netloc, model)


class RemoteLLM(BaseLLM):
    """LangChain's ``OpenAI`` with the options of a ``BloomPipeline``.

    ``can_score`` says whether the server echoes prompts with log-probabilities. Nothing is kept in a LangChain cache:
    what answers at an address may change.
    """

    address: Address
    # langchain_openai.OpenAI, which loads only when a server is asked for.
    server: Any = Field(repr=False, exclude=True)
    can_score: bool = True
    cache: bool = False

    @property
    def _llm_type(self) -> str:
        return "bloom-lens-remote"

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: Any = None,
        *,
        pipeline_kwargs: dict[str, Any] | None = None,
        **_: Any,
    ) -> LLMResult:
        with ThreadPoolExecutor(CONCURRENT_REQUESTS) as pool:  # what waits is dropped as soon as one request fails
            replies = pool.map(lambda prompt: self._reply(prompt, stop, **(pipeline_kwargs or {})), prompts)
            return LLMResult(generations=[[Generation(text=reply)] for reply in replies])

    def _reply(
        self,
        prompt: str,
        stop: list[str] | None,
        *,
        labels: dict[str, Any] | None = None,
        items: dict[str, Any] | None = None,
        max_new_tokens: int = REPLY_TOKENS,
    ) -> str:
        with self._errors_in_words():
            if labels:
                return json.dumps(self._score(prompt, labels["words"]), ensure_ascii=False)
            ends = [items["end"]] if items else stop or ["\n"]
            (generation,) = self._complete([prompt], max_tokens=max_new_tokens, stop=ends)
            return str(generation.text)

    def _score(self, prompt: str, words: Sequence[str]) -> dict[str, float]:
        """Label word → log-probability in nats, given that the reply is a label; see ``fork_scores``."""
        texts = [prompt + word for word in words]
        paths = []
        for text, generation in zip(texts, self._complete(texts, max_tokens=0, echo=True, logprobs=1), strict=True):
            if generation.text != text:
                raise ValueError("no echo")
            logprobs = (generation.generation_info or {})["logprobs"]
            paths.append(list(zip(logprobs["tokens"], logprobs["token_logprobs"], strict=True)))
        return {word.strip(): score for word, score in zip(words, fork_scores(paths), strict=True)}

    def _complete(self, prompts: list[str], **options: Any) -> list[Generation]:
        return [generation for (generation,) in self.server.generate(prompts, **options).generations]

    def finds_echo(self) -> bool:
        """Whether the server scores labels; asks it, and logs the answer if it does not.

        Raises:
            ChainError: it cannot even complete a prompt.
        """
        import openai

        with self._errors_in_words():
            self._complete([PROBE], max_tokens=1)
            try:
                self._score(PROBE, PROBE_WORDS)
            except openai.APIStatusError as error:
                if error.status_code not in NO_ECHO:
                    raise
            except MALFORMED:
                pass  # it ignores options that it does not know
            else:
                return True
        LOG.warning("%s has no echo with log-probabilities: labels are generated and parsed.", self.address.host)
        return False

    @contextmanager
    def _errors_in_words(self) -> Iterator[None]:
        import openai

        try:
            yield
        except openai.OpenAIError as error:
            raise self._explain(error) from None  # the library's error holds the request, and that the key
        except MALFORMED as error:
            raise ModelError(
                f"What {self.address.host} answered is no completion. Give the URL of a server that speaks the OpenAI "
                "completions protocol, up to where '/completions' follows."
            ) from error

    def _explain(self, error: Exception) -> ChainError:
        import openai

        host = self.address.host
        if isinstance(error, openai.APITimeoutError):
            return ModelError(
                f"{host} did not answer within {TIMEOUT_S:g} s, {MAX_RETRIES + 1} times. It may be busy: go on later."
            )
        if not isinstance(error, openai.APIStatusError):
            return ModelError(
                f"There is no connection to {host}: {self._quote(error.__cause__ or error)}. "
                "Start the server, or correct the URL."
            )
        status, said = error.status_code, self._quote(error.message)
        if status in {401, 403}:
            said = f"'Error code: {status}'"  # the rest may quote the key
        if status in REFUSED:
            return ReplyError(
                f"{host} refused this text: {said}. If it is too long for the server's context, use fewer shots.", ""
            )
        return ModelError(f"{host} answered {said}. {ADVICE.get(status, 'The log of the server may say why.')}")

    def _quote(self, said: object) -> str:
        """What the server or the network said, in quotes, without the key."""
        key = self.server.openai_api_key.get_secret_value()
        return repr(str(said).replace(key, "…")[:300])


def connect(address: Address, api_key: str) -> RemoteLLM:
    """The model at an address, after a word with its server; ``api_key`` may be empty.

    Raises:
        ChainError: the server does not answer, or not as such a server should.
    """
    import openai
    from langchain_openai import OpenAI
    from pydantic import SecretStr

    if not api_key.isascii() or not api_key.isprintable():
        raise ModelError("The key in BLOOM_LENS_API_KEY holds a character that no key can. Set it anew.")
    http_client = openai.DefaultHttpxClient(follow_redirects=False)
    server = OpenAI(
        model=address.model,
        base_url=address.url,
        api_key=SecretStr(api_key or "no-key-is-set"),  # else the library sends that of OPENAI_API_KEY
        temperature=0,
        timeout=openai.Timeout(TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
        max_retries=MAX_RETRIES,
        http_client=http_client,
        cache=False,
    )
    weakref.finalize(server, http_client.close)
    llm = RemoteLLM(address=address, server=server)
    llm.can_score = llm.finds_echo()
    return llm


def fork_scores(paths: Sequence[Sequence[tuple[str, float | None]]], depth: int = 0) -> list[float]:
    """Log-probability in nats of each path of (token, log-probability), given that one of them is taken.

    The rule of ``Decoder.score_labels``: paths form a trie, at each fork the tokens that may follow share the
    probability, and tokens without a fork are certain. So the prompt's own tokens, which all paths begin with, add
    nothing, and no offsets are needed to tell where it ends: a token that holds its end and a label's beginning is
    where the paths fork.

    Raises:
        IndexError, TypeError, ValueError: a path is the beginning of another, or has no finite number at a fork.
    """
    if len(paths) == 1:
        return [0.0]
    while len({path[depth][0] for path in paths}) == 1:
        depth += 1
    groups: dict[str, list[int]] = defaultdict(list)
    for number, path in enumerate(paths):
        groups[path[depth][0]].append(number)
    logprobs = [float(paths[numbers[0]][depth][1]) for numbers in groups.values()]  # type: ignore[arg-type]
    if not all(map(math.isfinite, logprobs)):
        raise ValueError(f"log-probabilities {logprobs}")
    top = max(logprobs)
    total = top + math.log(sum(math.exp(logprob - top) for logprob in logprobs))
    scores = [0.0] * len(paths)
    for logprob, numbers in zip(logprobs, groups.values(), strict=True):
        for number, rest in zip(numbers, fork_scores([paths[number] for number in numbers], depth + 1), strict=True):
            scores[number] = logprob - total + rest
    return scores
