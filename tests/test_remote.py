import asyncio
import json
import logging
import math
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, BloomForCausalLM

from chains import remote
from chains.analysis import analyse
from chains.entities import find_entities, find_entities_batch
from chains.errors import ModelError, ReplyError
from chains.language import detect_language, detect_languages, language_chain
from chains.pipeline import make_llm
from chains.prompts import load_task, prompt_template
from chains.registry import Model, find_model, load
from chains.remote import fork_scores, parse_address

ROOT = Path(__file__).parent.parent
KEY = "sk-a-very-secret-key"
TEXTS = [
    "Nadia Okafor left Siemens for Porto in 1998.",
    "El Banco de España envió a Julián Ferrer a Bogotá.",
    "À Genève, Élise Vautrin dirige la recherche chez Nestlé.",
    "naïve café in Zürich 😀 costs (about) 3 €; l’Iran aussi.",
    "x",
]
LOOK_ALIKES = ["x>(english)\n<y", "z\nEntities: <Zed>(person)", "{text}", "#", "\0", "\ud800", '","echo":false,"x":"']


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """No proxy stands before the loopback and no key is set, whatever the machine says."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.delenv("BLOOM_LENS_API_KEY", raising=False)


class Server:
    """A real HTTP server on a free port of the loopback.

    ``answer(body)`` gives what it answers to a request's JSON: a document, ``(status, document)`` or
    ``(status, document, headers)``; a document that is ``bytes`` is sent as it is.
    """

    def __init__(self, answer):
        self.answer = answer
        self.requests, self.headers, self.paths = [], [], []
        self.running = self.most_running = 0
        lock, outer = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.requests.append(body)
                    outer.headers.append(self.headers)
                    outer.paths.append(self.path)
                    outer.running += 1
                    outer.most_running = max(outer.most_running, outer.running)
                answer = outer.answer(body)
                status, document, *more = answer if isinstance(answer, tuple) else (200, answer)
                content = document if isinstance(document, bytes) else json.dumps(document).encode()
                with lock:
                    outer.running -= 1
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **(more[0] if more else {})}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.host = f"127.0.0.1:{self.http.server_port}"
        self.name = f"openai:http://{self.host}/v1#big/bloomz"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def load(self):
        """The model behind it, with the requests forgotten that found out what it can do."""
        model = load(self.name)
        for seen in (self.requests, self.headers, self.paths):
            seen.clear()
        return model

    def close(self):
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def serve():
    """``serve(answer)``: a server that answers as the function says."""
    servers = []

    def start(answer):
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def completion(*choices):
    """A completion as the protocol has it; a choice is its text, or the text with its tokens and log-probabilities."""
    made = []
    for index, choice in enumerate(choices):
        text, logprobs = (choice, None) if isinstance(choice, str) else choice
        made.append({"index": index, "text": text, "finish_reason": "stop", "logprobs": logprobs})
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return {"id": "c", "object": "text_completion", "created": 1, "model": "m", "choices": made, "usage": usage}


def echo(text, score):
    """An echoed prompt of two tokens: all but its last letter, and that with ``score``."""
    logprobs = {"tokens": [text[:-1], text[-1]], "token_logprobs": [None, score], "text_offset": [0, len(text) - 1]}
    return text, logprobs


def word_of(prompt):
    return next(word for word in ("english", "español", "française", "other", "early", "late") if prompt.endswith(word))


def scripted(body, reply=" none"):
    """A server that knows Spanish by ``el``, scores labels and writes ``reply``."""
    if not body.get("echo"):
        return completion(reply if isinstance(reply, str) else reply(body["prompt"][0]))
    choices = []
    for prompt in body["prompt"]:
        word = word_of(prompt)
        best = "español" if " el " in prompt.rpartition("\n<")[2] else "english"
        fork = prompt.index(word, len(prompt) - len(word))
        tokens = [prompt[:fork], word]
        choices.append((prompt, {"tokens": tokens, "token_logprobs": [None, -0.1 if word == best else -5.0]}))
    return completion(*choices)


@pytest.mark.parametrize(
    ("name", "url", "host", "model"),
    [
        ("openai:http://h:8000/v1#a/b", "http://h:8000/v1", "h:8000", "a/b"),
        ("openai:https://h/#b", "https://h", "h", "b"),
        ("openai:http://[::1]:9/v1#b@main", "http://[::1]:9/v1", "[::1]:9", "b@main"),
    ],
)
def test_a_name_holds_the_servers_url_and_the_models_name_there(name, url, host, model):
    address = parse_address(name)
    assert (address.url, address.host, address.model) == (url, host, model)
    info = find_model(name)
    assert (info.name, info.source, info.shots, info.layer_bytes) == (name, url, 3, 0)


@pytest.mark.parametrize(
    "name",
    [
        "openai:",
        "openai:#b",
        "openai:http://h/v1",
        "openai:http://h/v1#",
        "openai:h:8000/v1#b",
        "openai:ftp://h/v1#b",
        "openai:file:///etc/passwd#b",
        "openai:http://#b",
        "openai:http://h:port/v1#b",
        "openai:http://h:99999/v1#b",
        "openai:http://[::1/v1#b",
        "openai:http://h/v1#a b",
        "openai:http://h/v1\n#b",
        "openai:http://h/v1#a#b",
    ],
)
def test_any_other_form_is_an_error_that_shows_the_right_one(name):
    for ask in (find_model, load):
        with pytest.raises(ModelError, match="Cannot read.*openai:<url>#<model>.*BLOOM_LENS_API_KEY") as caught:
            ask(name)
        assert repr(name) in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        f"openai:http://user:{KEY}@h/v1#b",
        f"openai:http://{KEY}@h/v1",
        f"openai:user:{KEY}@h#b",
        f"openai:http://h/v1?key={KEY}#b",
        f"openai:http://user:{KEY}#x@h/v1#b",
    ],
)
def test_credentials_in_a_name_are_an_error_that_does_not_repeat_them(name):
    with pytest.raises(ModelError, match="openai:<url>#<model>") as caught:
        find_model(name)
    assert KEY not in str(caught.value)


def serve_bloom(folder):
    """A server that answers from a checkpoint in fp32, by transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = BloomForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    lock = threading.Lock()

    def scored(prompt):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        logprobs = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0].tolist()
        tokens = tokenizer.convert_ids_to_tokens(ids[0])
        return prompt, {"tokens": tokens, "token_logprobs": [None, *logprobs]}

    def written(prompt, max_tokens, stop):
        ids = tokenizer(prompt, return_tensors="pt")
        whole = model.generate(
            **ids, do_sample=False, max_new_tokens=max_tokens, stop_strings=stop, tokenizer=tokenizer,
            pad_token_id=tokenizer.pad_token_id,
        )[0, ids["input_ids"].shape[1] :]  # fmt: skip
        reply = tokenizer.decode(whole, skip_special_tokens=True)
        return min((reply.partition(end)[0] for end in stop or []), key=len, default=reply)

    def answer(body):
        assert body["temperature"] == 0 and body["model"] == "big/bloomz"
        with lock, torch.inference_mode():
            if body.get("echo"):
                assert body["max_tokens"] == 0
                return completion(*map(scored, body["prompt"]))
            return completion(*(written(prompt, body["max_tokens"], body.get("stop")) for prompt in body["prompt"]))

    return Server(answer)


@pytest.fixture(scope="module")
def tiny_server(tiny_folder):
    """The tiny random BLOOM behind a server."""
    server = serve_bloom(tiny_folder)
    yield server
    server.close()


@pytest.mark.parametrize("shots", [0, 3])
def test_label_scores_of_a_server_are_those_of_forced_decoding(tiny_server, exact_model, shots):
    far = detect_languages(TEXTS, tiny_server.load(), shots=shots)
    near = detect_languages(TEXTS, exact_model, shots=shots)
    for one, other in zip(far, near, strict=True):
        # Both are sums of fp32 numbers, with and without a prefix cache.
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-4)
        assert (one.language, one.way, one.prompts) == (other.language, "forced", other.prompts)


def test_plain_replies_of_a_server_are_those_of_the_plain_way(tiny_server, exact_model):
    model = tiny_server.load()
    far = detect_languages(TEXTS, model, way="plain")
    near = detect_languages(TEXTS, exact_model, way="plain")
    assert [item.language for item in far] == [item.language for item in near]
    assert {item.way for item in far} == {"plain"}
    for one, other in zip(far, near, strict=True):
        assert one.replies[0].rstrip("\n") == other.replies[0].rstrip("\n") != ""
    # A random model writes no items: what is compared is the reply.
    for text in TEXTS:
        replies = []
        for asked in (model, exact_model):
            with pytest.raises(ReplyError) as caught:
                find_entities(text, asked, way="plain")
            replies.append(caught.value.reply.rstrip("\n"))
        assert replies[0] == replies[1] != ""


@pytest.mark.model
def test_the_embedded_model_behind_a_server_finds_the_languages_and_entities_that_it_finds_here(request):
    info = find_model("embedded")
    server = serve_bloom(info.source)
    request.addfinalizer(server.close)
    weights = BloomForCausalLM.from_pretrained(info.source, dtype=torch.float32).eval()
    near = Model(info, make_llm(weights, load("embedded").llm.pipeline.tokenizer, "exact", "exact-weights"))
    far = server.load()
    for text in TEXTS[:3]:
        here, there = detect_language(text, near, shots=0), detect_language(text, far, shots=0)
        assert there.language == here.language and there.logprobs == pytest.approx(here.logprobs, abs=1e-3)
        found = find_entities(text, far, shots=0)
        assert found.entities == find_entities(text, near, shots=0, way="plain").entities != ()


def test_a_model_answers_alike_in_all_of_langchains_ways(tiny_server):
    chain = language_chain(tiny_server.load())
    inputs = [{"text": text} for text in TEXTS[:2]]
    alone = [chain.invoke(item) for item in inputs]

    async def later():
        return [await chain.ainvoke(inputs[0]), *(await chain.abatch(inputs))]

    others = [*chain.batch(inputs), *asyncio.run(later()), *chain.stream(inputs[0])]
    for detection, other in zip(others, [*alone, alone[0], *alone, alone[0]], strict=True):
        assert detection.probabilities == pytest.approx(other.probabilities, abs=1e-4)


def test_a_label_is_scored_in_one_request_that_generates_nothing(serve):
    server = serve(scripted)
    model = server.load()
    detection = detect_language("Vive en el campo.", model)
    template = prompt_template(load_task("language"), 3)
    prompt = template.format(text="Vive en el campo.")
    (request,) = server.requests
    assert request["prompt"] == [prompt + word for word in ("english", "español", "française", "other")]
    assert (request["max_tokens"], request["echo"], request["temperature"]) == (0, True, 0)
    assert (detection.language, detection.way, detection.prompts) == ("spanish", "forced", (prompt,))
    assert sum(detection.probabilities.values()) == pytest.approx(1)
    assert server.paths == ["/v1/completions"]
    assert model.version == f"openai:{server.host}/big/bloomz · remote"


def test_entities_are_written_up_to_the_end_of_the_line_and_counted_only_if_in_the_text(serve):
    server = serve(lambda body: scripted(body, " <Ana>(person) <Lima>(location) <Zed>(person)"))
    recognition = find_entities("Ana left Lima. Ana is back.", server.load())
    assert [(e.text, e.start) for e in recognition.entities] == [("Ana", 0), ("Lima", 9), ("Ana", 15)]
    assert [mention.text for mention in recognition.ungrounded] == ["Zed"]
    (request,) = server.requests
    assert (request["stop"], request["max_tokens"]) == (["\n"], remote.REPLY_TOKENS)


def test_an_unreadable_reply_is_its_texts_own_error(serve):
    server = serve(lambda body: scripted(body, lambda prompt: " ?" if "bad" in prompt else " <Ana>(person)"))
    analyses = analyse(["Ana.", "bad", "Ana!"], server.load())
    assert [bool(item.error) for item in analyses] == [False, True, False]
    assert "Cannot read '?' as entities" in analyses[1].error


def test_replies_come_in_order_though_requests_overlap(serve):
    def slowly(body):
        text = body["prompt"][0].rpartition("Text: ")[2].partition("\n")[0]
        if text.isdigit():
            time.sleep(0.05 * (int(text) % 3))
            return completion(f" <{text}>(person)")
        return scripted(body)

    server = serve(slowly)
    texts = [str(number) for number in range(24)]
    found = find_entities_batch(texts, server.load())
    assert [[entity.text for entity in item.entities] for item in found] == [[text] for text in texts]
    assert 1 < server.most_running <= remote.CONCURRENT_REQUESTS


def test_a_long_text_is_read_in_windows_of_bounded_bytes(serve):
    server = serve(scripted)
    text = "Élise habite à Genève. 😀 " * 100
    find_entities(text, server.load(), shots=0)
    windows = [body["prompt"][0].rpartition("Text: ")[2].removesuffix("\nEntities:") for body in server.requests]
    assert len(windows) > 2 and all(len(window.encode()) <= remote.WINDOW_BYTES for window in windows)


def test_a_byte_estimate_is_never_too_low(tiny_folder, serve):
    model, tokenizer = serve(scripted).load(), AutoTokenizer.from_pretrained(tiny_folder)
    for text in [*TEXTS, "", "日本語", "\n"]:
        assert model.count_tokens(text) >= len(tokenizer.encode(text, add_special_tokens=False))


def test_six_shots_a_window_and_a_reply_fit_blooms_context():
    prefix = prompt_template(load_task("entities"), 6).format(text="")
    # 2.5 bytes a token: BLOOM's own vocabulary needs fewer tokens for English, Spanish and French.
    assert len(prefix.encode()) / 2.5 + remote.WINDOW_BYTES + remote.REPLY_TOKENS < 2048


@pytest.mark.parametrize(
    "refuse",
    [
        lambda body: completion(*("español)" for _ in body["prompt"])),
        lambda body: completion(*((prompt, None) for prompt in body["prompt"])),
        lambda body: completion(*(echo(prompt + "x", -1) for prompt in body["prompt"])),
        lambda body: (400, {"error": {"message": "echo is not supported"}}),
        lambda body: (422, {"detail": "extra fields"}),
        lambda body: (500, {"error": {"message": "logits_all is off"}}, {"Retry-After-Ms": "1"}),
    ],
    ids=["ignored", "no log-probabilities", "another text", "400", "422", "500"],
)
def test_without_echo_labels_are_generated_and_the_result_says_so(serve, caplog, refuse):
    server = serve(lambda body: refuse(body) if body.get("echo") else completion("español)"))
    with caplog.at_level(logging.WARNING):
        model = server.load()
    assert "has no echo" in caplog.text and server.host in caplog.text
    detections = detect_languages(["Hola.", "Adiós."], model)
    assert [(item.language, item.way, item.probability) for item in detections] == [("spanish", "plain", None)] * 2
    assert [body.get("echo") for body in server.requests] == [None, None], "it was decided once"
    assert all(body["max_tokens"] == 8 for body in server.requests)


def fails(status, message="no", headers=None):
    """An answer to every request; retries wait as briefly as the protocol allows."""
    return lambda _: (status, {"error": {"message": message}}, {"Retry-After-Ms": "1"} | (headers or {}))


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "BLOOM_LENS_API_KEY"),
        (403, "BLOOM_LENS_API_KEY"),
        (404, "/completions"),
        (429, "too much to do"),
        (500, "The log of the server"),
        (503, "The log of the server"),
        (307, "The log of the server"),
    ],
)
def test_a_status_that_is_an_error_is_put_in_words(serve, status, words):
    server = serve(fails(status, headers={"Location": "http://127.0.0.1:9/v1"}))
    with pytest.raises(ModelError) as caught:
        load(server.name)
    message = str(caught.value)
    assert server.host in message and str(status) in message and words in message
    assert len(server.requests) == (1 + remote.MAX_RETRIES if status in {429, 500, 503} else 1)


def test_retry_after_is_waited_for(serve):
    times = []

    def busy_once(body):
        times.append(time.monotonic())
        return (429, {"error": {"message": "slow down"}}, {"Retry-After": "1"}) if len(times) == 1 else scripted(body)

    assert load(serve(busy_once).name).can_score
    assert times[1] - times[0] >= 1


def test_a_request_refused_for_its_text_is_that_texts_error(serve):
    def refuse_long(body):
        too_long = "bad" in body["prompt"][0]
        return (400, {"error": {"message": "maximum context length is 9 tokens"}}) if too_long else scripted(body)

    analyses = analyse(["Ana.", "bad"], serve(refuse_long).load())
    assert analyses[0].error is None
    assert "refused this text" in analyses[1].error and "context length is 9" in analyses[1].error


def test_a_server_that_fails_midway_ends_the_work_instead_of_failing_every_text(serve):
    server = serve(scripted)
    model = server.load()
    server.answer = fails(500)
    with pytest.raises(ModelError, match="500"):
        analyse([f"Text {number}." for number in range(64)], model)
    assert len(server.requests) <= 3 * remote.CONCURRENT_REQUESTS * (1 + remote.MAX_RETRIES)


def test_a_silent_server_is_given_up(serve, monkeypatch):
    monkeypatch.setattr(remote, "TIMEOUT_S", 0.1)
    monkeypatch.setattr(remote, "MAX_RETRIES", 1)
    server = serve(lambda body: time.sleep(0.4) or scripted(body))
    with pytest.raises(ModelError, match=r"did not answer within 0\.1 s, 2 times") as caught:
        load(server.name)
    assert server.host in str(caught.value) and len(server.requests) == 2


def test_a_refused_connection_is_put_in_words(monkeypatch):
    monkeypatch.setattr(remote, "MAX_RETRIES", 0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(ModelError, match="no connection to .*refused.* Start the server") as caught:
        load(f"openai:http://{host}/v1#b")
    assert host in str(caught.value)


GARBAGE = {
    "not JSON": b"<html>Hello",
    "half JSON": b'{"choices": [',
    "empty": b"",
    "null": b"null",
    "a list": b"[]",
    "another document": {"hello": 1},
    "no choices": {"choices": [], "usage": {}},
    "null choices": {"choices": None, "usage": {}},
    "a choice without a text": {"choices": [{"index": 0}], "usage": {}},
    "an error in a good answer": {"error": {"message": "oops"}, "choices": []},
}


@pytest.mark.parametrize("document", GARBAGE.values(), ids=GARBAGE)
@pytest.mark.parametrize("content_type", ["application/json", "text/html"])
def test_an_answer_that_is_no_completion_is_put_in_words(serve, document, content_type):
    server = serve(lambda _: (200, document, {"Content-Type": content_type}))
    with pytest.raises(ModelError, match="is no completion.*OpenAI completions protocol") as caught:
        load(server.name)
    assert server.host in str(caught.value)


@pytest.mark.parametrize("score", [None, math.nan, math.inf])
def test_scores_that_are_no_numbers_are_an_error(serve, score):
    server = serve(scripted)
    model = server.load()
    server.answer = lambda body: completion(*(echo(prompt, score) for prompt in body["prompt"]))
    with pytest.raises(ModelError, match="is no completion"):
        detect_language("Hola.", model)


def test_the_key_is_sent_and_shown_nowhere(serve, monkeypatch, caplog):
    monkeypatch.setenv("BLOOM_LENS_API_KEY", KEY)
    server = serve(scripted)
    with caplog.at_level(logging.DEBUG):
        model = load(server.name)
        detection = detect_language("Hola.", model)
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    shown = [repr(model.info), repr(model.llm), str(model.llm), str(model.llm.asdict()), model.version, caplog.text]
    shown += [repr(model.llm.server), model.llm.model_dump_json(), detection.model_dump_json()]
    assert not [text for text in shown if KEY in text]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500])
def test_a_server_that_quotes_the_key_gives_it_to_no_error(serve, monkeypatch, caplog, status):
    monkeypatch.setenv("BLOOM_LENS_API_KEY", KEY)
    server = serve(fails(status, f"the key {KEY} is wrong"))
    with caplog.at_level(logging.DEBUG), pytest.raises((ModelError, ReplyError)) as caught:
        load(server.name)
    assert KEY not in str(caught.value) + caplog.text and caught.value.__cause__ is None


@pytest.mark.parametrize("key", ["schlüssel", "a\x7fb", "two\nlines"])
def test_a_key_that_no_header_can_hold_is_an_error(serve, monkeypatch, key):
    monkeypatch.setenv("BLOOM_LENS_API_KEY", key)
    server = serve(scripted)
    with pytest.raises(ModelError, match="BLOOM_LENS_API_KEY") as caught:
        load(server.name)
    assert key not in str(caught.value) and server.requests == []


def test_the_key_of_another_service_is_not_sent(serve, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("OPENAI_API_BASE", "http://127.0.0.1:9")
    server = serve(scripted)
    load(server.name)
    assert server.requests and not [headers for headers in server.headers if KEY in str(headers)]


def test_texts_follow_no_redirect(serve):
    elsewhere = serve(scripted)
    server = serve(lambda _: (307, {}, {"Location": f"http://{elsewhere.host}/v1/completions"}))
    with pytest.raises(ModelError, match="307"):
        load(server.name)
    assert elsewhere.requests == []


def test_a_proxy_of_the_environment_is_used_except_where_it_says_not_to(serve, monkeypatch):
    proxy, server = serve(scripted), serve(scripted)
    monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.host}")
    monkeypatch.setenv("http_proxy", f"http://{proxy.host}")
    load("openai:http://models.invalid/v1#b")
    assert set(proxy.paths) == {"http://models.invalid/v1/completions"}
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    before = len(proxy.requests)
    load(server.name)
    assert server.requests and len(proxy.requests) == before


@pytest.mark.parametrize("text", LOOK_ALIKES)
def test_a_text_cannot_pose_as_prompt_or_request(serve, text):
    server = serve(scripted)
    model = server.load()
    (item,) = analyse([text], model)
    assert item.error is None
    for body in server.requests:
        task = load_task("language" if body.get("echo") else "entities")
        prefix = prompt_template(task, 3).format(text="")
        assert all(prompt.count("\n") == prefix.count("\n") for prompt in body["prompt"])
        assert len(body["prompt"]) == (4 if body.get("echo") else 1)


def test_a_model_behind_a_server_needs_neither_torch_nor_transformers(serve):
    program = (
        "import sys; from chains import load, detect_language, find_entities; model = load(sys.argv[1]);"
        "print(detect_language('Hola.', model).way, find_entities('Hola.', model).counts(),"
        "sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    arguments = [sys.executable, "-W", "error", "-c", program, serve(scripted).name]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("forced {} []\n", "")


def test_the_client_library_loads_only_when_a_server_is_asked_for():
    program = "import sys, chains.analysis; print(sorted({'openai', 'langchain_openai'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_command_line_takes_a_server_and_puts_its_errors_in_words(serve):
    server = serve(scripted)
    command = [sys.executable, "-m", "chains", "detect", "--json", "--model", server.name, "Vive en el campo."]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["language"] == "spanish"
    server.answer = fails(401)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "BLOOM_LENS_API_KEY" in done.stderr and "Traceback" not in done.stderr


def test_two_words_of_one_token_share_the_probability_of_their_first_tokens():
    paths = [[("p", None), ("(", -9.0), ("en", math.log(0.3))], [("p", None), ("(", -9.1), ("es", math.log(0.1))]]
    assert fork_scores(paths) == pytest.approx([math.log(0.75), math.log(0.25)])


def test_a_token_that_holds_the_prompts_end_is_where_paths_fork():
    paths = [[("p", None), ("(e", math.log(0.2))], [("p", None), ("(", math.log(0.6)), ("f", -0.5)]]
    assert fork_scores(paths) == pytest.approx([math.log(0.25), math.log(0.75)])


@pytest.mark.parametrize(
    "paths",
    [
        [[("p", None)], [("p", None)]],
        [[("p", None), ("a", -1.0)], [("p", None), ("a", -1.0), ("b", -1.0)]],
        [[("p", None)], [("q", None)]],
        [[], []],
    ],
)
def test_paths_that_cannot_be_told_apart_are_an_error(paths):
    with pytest.raises((IndexError, TypeError, ValueError)):
        fork_scores(paths)


@given(st.lists(st.text("ab", min_size=1, max_size=6), min_size=1, max_size=6, unique=True), st.randoms())
def test_fork_scores_are_log_probabilities_of_one_choice(words, random):
    words = [word + "." for word in words]  # so that none is the beginning of another
    known = {word[:end]: -random.random() * 9 for word in words for end in range(1, len(word) + 1)}
    paths = [[("p", None), *((word[end - 1], known[word[:end]]) for end in range(1, len(word) + 1))] for word in words]
    scores = fork_scores(paths)
    assert sum(map(math.exp, scores)) == pytest.approx(1)
    assert fork_scores(paths[::-1]) == pytest.approx(scores[::-1])
