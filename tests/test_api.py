"""REST as its callers meet it: a real server on the loopback interface, with the tiny model."""

import hashlib
import io
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import openpyxl
import pyarrow.parquet
import pytest
import sqlalchemy as sa
import streamlit as st
import uvicorn

import api
import gateway
import messages
from chains import batch, registry
from chains.entities import find_entities
from chains.errors import ModelError, StoreError
from chains.language import detect_language

ROOT = Path(__file__).parent.parent
TEXT = "Nadia Okafor left Siemens for Porto in 1998."
CSV = "id,text\n1,Nadia Okafor left Porto.\n2,Hola.\n3,=1+1\n"
PROBLEM = "application/problem+json"


@pytest.fixture
def environment(monkeypatch, tmp_path):
    monkeypatch.setenv("BLOOM_LENS_DATA", str(tmp_path))
    monkeypatch.setenv("BLOOM_LENS_MODEL", "tiny")
    for name in ("DATABASE", "SHARED", "TOKENS", "RATE", "MAX_JOBS", "MAX_ROWS"):
        name = f"BLOOM_LENS_{name}"
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(batch, "IDLE_S", 0.01)
    monkeypatch.setattr(registry, "find_model", lambda name: registry.MODELS["embedded"])
    monkeypatch.setattr(api, "find_model", lambda name: registry.MODELS["embedded"])
    st.cache_resource.clear()
    yield monkeypatch
    st.cache_resource.clear()


@contextmanager
def serving():
    """A client of a server that has begun to load its model; at the end, the server shuts down as on SIGTERM."""
    server = uvicorn.Server(uvicorn.Config(api.create_app(with_dashboard=False), log_config=None))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        wait_until(lambda: server.started)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=20) as client:
                client.server = server
                yield client
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


def wait_until(is_so, timeout_s=20):
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def client(environment, tiny_model):
    environment.setattr(registry, "load", lambda name: tiny_model)
    with serving() as client:
        wait_until(lambda: client.get("/health").status_code == 200)
        yield client


@pytest.fixture
def gate(tiny_model, monkeypatch):
    """Closed, the model begins and does not end."""
    queue, gate = tiny_model.llm.pipeline.queue, threading.Event()
    run = queue.run
    gate.entered = threading.Semaphore(0)

    def hold(prompts, options):
        gate.entered.release()
        assert gate.wait(20)
        return run(prompts, options)

    def shut():
        gate.entered = threading.Semaphore(0)
        gate.clear()

    gate.shut = shut
    gate.set()
    monkeypatch.setattr(queue, "run", hold)
    yield gate
    gate.set()


def check_problem(response, status, words):
    body = response.json()
    assert (response.status_code, response.headers["Content-Type"], body["status"]) == (status, PROBLEM, status)
    assert words in body["detail"] and body["title"], body
    return body


def upload(client, content=CSV, name="in.csv", **fields):
    return client.post("/jobs", files={"file": (name, content)}, data=fields)


def finished(client, content=CSV):
    id = upload(client, content).json()["id"]
    wait_until(lambda: client.get(f"/jobs/{id}").json()["state"] == "done")
    return id


def figure(client, name):
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def test_languages_of_one_text_and_of_many_are_those_of_the_chain(client, tiny_model):
    texts = [TEXT, "", "Hola. 😀"]
    one = client.post("/language-detection", json={"text": TEXT, "explain": True}).json()
    known = [detect_language(text, tiny_model).model_dump(mode="json") for text in texts]
    assert one["results"] == known[:1] and one["model"] == tiny_model.version
    many = client.post("/language-detection", json={"text": texts}).json()
    assert many["results"] == [result | {"prompts": [], "replies": []} for result in known]
    assert sum(many["counts"].values()) == 3 and many["counts"]["unknown"] >= 1


def test_entities_are_those_of_the_chain_with_counts(client, tiny_model):
    answer = client.post("/entity-recognition", json={"text": [TEXT, TEXT, ""], "shots": 1, "explain": True}).json()
    known = find_entities(TEXT, tiny_model, shots=1)
    assert known.entities
    result = known.model_dump(mode="json") | {"occurrences": known.counts()}
    assert answer["results"][:2] == [result] * 2 and answer["results"][2]["occurrences"] == {}
    assert answer["counts"] == {type: 2 * count for type, count in known.counts().items()}
    assert {(name["text"], name["type"]): name["count"] for name in answer["names"]} == {
        key: 2 * count for key, count in known.distinct().items()
    }


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "body.text: Field required"),
        ({"text": []}, "0 texts were sent: expected 1 to 128"),
        ({"text": ["a"] * 129}, "129 texts were sent: expected 1 to 128"),
        ({"text": ["a", "b" * 20_001]}, "text 2 has 20,001 characters: expected at most 20,000"),
        ({"text": ["b" * 20_000] * 11}, "the texts have 220,000 characters: expected at most 200,000 together"),
        ({"text": "a", "shots": 7}, "less than or equal to 6"),
        ({"text": "a", "timeout_s": 0}, "greater than 0"),
        ({"text": "a", "model": "bloomz-7b1"}, "Extra inputs are not permitted"),
        ({"text": "\ud800"}, "text 1 holds half a character"),
        ("{", "JSON decode error"),
        ({"text": "a", "explain": 0}, "body.explain: Input should be a valid boolean"),
        ({"text": "a", "shots": "3"}, "body.shots: Value error, expected a number"),
        ({"text": "a", "shots": True}, "body.shots: Value error, expected a number"),
        ({"text": "a", "timeout_s": "5"}, "body.timeout_s: Input should be a valid number"),
    ],
)
def test_a_wrong_request_is_a_problem_that_says_what_was_expected(client, body, words):
    content = body if isinstance(body, str) else json.dumps(body)
    response = client.post("/language-detection", content=content, headers={"Content-Type": "application/json"})
    assert "bbbb" not in json.dumps(check_problem(response, 422, words))


def test_a_body_that_is_no_text_at_all_is_a_documented_problem(client):
    json_type, form_type = "application/json", "multipart/form-data; boundary=b"
    documented = client.get("/openapi.json").json()["paths"]
    for path, kind, body in (
        ("/language-detection", json_type, b"\xff\xfe{Jr"),
        ("/entity-recognition", json_type, b"\xff"),
        ("/jobs", form_type, b"--b\r\n\xd2#\xf4--b--\r\n"),
    ):
        response = client.post(path, content=body, headers={"Content-Type": kind})
        check_problem(response, 400, "")
        assert "400" in documented[path]["post"]["responses"]


def test_the_description_says_how_many_texts_there_may_be(client):
    one, many = client.get("/openapi.json").json()["components"]["schemas"]["Texts"]["properties"]["text"]["anyOf"]
    assert one["maxLength"] == many["items"]["maxLength"] == 20_000
    assert (many["minItems"], many["maxItems"]) == (1, 128)


def test_answers_are_those_of_the_chains_however_many_ask_at_once(client, tiny_model):
    gold = (ROOT / "tests" / "gold" / "entities.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in gold[:48]]
    languages = [detect_language(text, tiny_model) for text in texts]
    entities = [find_entities(text, tiny_model) for text in texts]

    def ask(text):
        body = {"text": text, "explain": True}
        return [client.post(path, json=body).json() for path in ("/language-detection", "/entity-recognition")]

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, texts))
    for (language, recognition), detected, found in zip(answers, languages, entities, strict=True):
        [one], [other] = language["results"], recognition["results"]
        assert (one["language"], one["replies"]) == (detected.language, list(detected.replies))
        # Rows of one batch are summed up in another order: bf16 rounds a logit to 3 digits.
        assert one["probability"] == pytest.approx(detected.probability, abs=0.02)
        assert other == found.model_dump(mode="json") | {"occurrences": found.counts()}


@pytest.mark.slow
def test_schemathesis_finds_no_breach_of_the_description(client):
    command = [Path(sys.executable).with_name("schemathesis"), "--config-file", "tests/schemathesis.toml", "run"]
    command += [f"{client.base_url}/openapi.json", "--max-time", "180", "--max-examples", "25", "--continue-on-failure"]
    done = subprocess.run([*command, "--request-timeout", "60"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/language-detection", 405, "POST"),
        ("PUT", "/entity-recognition", 405, "POST"),
        ("GET", "/jobs", 405, "POST"),
        ("PATCH", "/jobs/1", 405, "DELETE, GET"),
        ("POST", "/jobs/1/result", 405, "GET"),
        ("DELETE", "/models", 405, "GET"),
        ("POST", "/health", 405, "GET"),
        ("POST", "/metrics", 405, "GET"),
        ("POST", "/batch", 405, "GET, HEAD"),
        ("GET", "/nothing", 404, None),
        ("GET", "/jobs/1", 404, None),
        ("GET", "/jobs/1/result", 404, None),
        ("DELETE", "/jobs/1", 404, None),
        ("GET", "/jobs/1/2/3", 404, None),
    ],
)
def test_a_wrong_path_or_method_is_a_problem(client, method, path, status, allow):
    response = client.request(method, path)
    check_problem(response, status, "takes" if status == 405 else "There is no")
    assert response.headers.get("Allow") == allow


@pytest.mark.parametrize("origin", ["http://elsewhere.example", "https://127.0.0.1", "null", "nonsense"])
def test_what_a_page_of_another_site_sends_is_refused(client, origin):
    response = client.post("/jobs", files={"file": ("in.csv", CSV)}, headers={"Origin": origin})
    check_problem(response, 403, "another site")


def test_what_a_page_of_this_server_sends_is_answered(client):
    origin = f"http://{client.base_url.netloc.decode()}"
    assert client.post("/language-detection", json={"text": TEXT}, headers={"Origin": origin}).status_code == 200


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_request_that_is_too_large_is_refused(client, is_chunked):
    body = b" " * 4_000_001
    content = iter([body[:1_000_000]] * 4 + [b" "]) if is_chunked else body
    response = client.post("/language-detection", content=content, headers={"Content-Type": "application/json"})
    check_problem(response, 413, "more than the 4,000,000 bytes")


def test_a_file_becomes_a_job_with_results_in_every_format(client):
    response = upload(client)
    assert response.status_code == 202
    job = response.json()
    assert response.headers["Location"] == f"/jobs/{job['id']}"
    assert (job["name"], job["text_column"], job["total"]) == ("in.csv", "text", 3)
    wait_until(lambda: client.get(f"/jobs/{job['id']}").json()["state"] == "done")
    result = f"/jobs/{job['id']}/result"
    lines = client.get(result).content.decode("utf-8-sig").splitlines()
    assert lines[0].startswith("id,text,language,") and len(lines) == 4 and lines[3].startswith("3,'=1+1,")
    assert client.get(result, params={"neutralise": "false"}).text.splitlines()[3].startswith("3,=1+1,")
    rows = [json.loads(line) for line in client.get(result, params={"format": "jsonl"}).text.splitlines()]
    long = client.get(result, params={"format": "jsonl", "shape": "long"}).text.splitlines()
    assert len(rows) == 3 and len(long) == sum(len(row["entities"]) for row in rows) > 0
    parquet = client.get(result, params={"format": "parquet"})
    assert pyarrow.parquet.read_table(io.BytesIO(parquet.content)).num_rows == 3
    excel = client.get(result, params={"format": "xlsx"})
    assert openpyxl.load_workbook(io.BytesIO(excel.content)).active.max_row == 4
    assert excel.headers["Content-Disposition"] == f'attachment; filename="{job["id"]}.xlsx"'
    check_problem(client.get(result, params={"format": "pdf"}), 422, "query.format")
    assert client.delete(f"/jobs/{job['id']}").status_code == 204
    check_problem(client.get(f"/jobs/{job['id']}"), 404, "There is no job")


def test_a_file_that_cannot_be_read_is_a_problem_and_leaves_nothing(client, tmp_path):
    check_problem(upload(client, b"%PDF-1.7 ...", "in.pdf"), 422, "'in.pdf' is a PDF document")
    check_problem(upload(client, text_column="txt"), 422, "There is no column 'txt'")
    check_problem(client.post("/jobs"), 422, "body.file: Field required")
    assert list((tmp_path / "uploads").iterdir()) == []


def test_results_stand_ready_when_the_job_is_done_or_in_part_before(client, gate):
    gate.shut()
    id = upload(client).json()["id"]
    check_problem(client.get(f"/jobs/{id}/result"), 409, "0 of 3 rows are done")
    part = client.get(f"/jobs/{id}/result", params={"partial": "true"})
    assert part.status_code == 200 and len(part.text.splitlines()) == 1
    gate.set()
    wait_until(lambda: client.get(f"/jobs/{id}/result").status_code == 200)


def test_a_result_whose_reader_leaves_is_not_written_on(client):
    blocks = api.Pipe().read_from(lambda target: [target.write(b"x" * 100_000) for _ in range(1000)])
    assert next(blocks)
    assert any(thread.name == "bloom-lens-export" for thread in threading.enumerate())
    blocks.close()
    wait_until(lambda: not any(thread.name == "bloom-lens-export" for thread in threading.enumerate()))
    with pytest.raises(ZeroDivisionError):
        list(api.Pipe().read_from(lambda target: 1 / 0))
    written = [b"a" * 70_000, b"b"]
    assert b"".join(api.Pipe().read_from(lambda target: target.writelines(written))) == b"".join(written)


def test_models_and_docs_name_what_there_is(client):
    models = client.get("/models").json()
    assert {"embedded", "bloomz-560m"} <= {model["name"] for model in models}
    described = client.get("/openapi.json").json()
    assert described["paths"]["/language-detection"]["post"]
    assert messages.EXAMPLE in json.dumps(described, ensure_ascii=False)
    page = client.get("/docs").text
    assert "https://" not in page and "/static-offline-docs/swagger-ui-bundle.js" in page
    assert client.get("/static-offline-docs/swagger-ui-bundle.js").status_code == 200


def test_it_is_ready_when_the_model_has_answered_and_not_before(environment, tiny_model):
    gate, failures = threading.Event(), iter([ModelError("The model is not there yet.")])

    def load(name):
        for error in failures:
            raise error
        assert gate.wait(20)
        return tiny_model

    environment.setattr(registry, "load", load)
    environment.setattr(api, "RETRY_LOAD_S", 0.01)
    with serving() as client:
        wait_until(lambda: "not there yet" in client.get("/health").text)
        for response in (client.get("/health"), client.post("/language-detection", json={"text": "a"})):
            check_problem(response, 503, "The model")
            assert int(response.headers["Retry-After"]) >= 1
        assert figure(client, "bloom_lens_ready") == 0
        gate.set()
        wait_until(lambda: client.get("/health").status_code == 200)
        assert figure(client, "bloom_lens_ready") == 1
        assert client.get("/health").json() == {"status": "ready", "model": tiny_model.version}


def test_too_many_callers_are_told_when_to_come_back(client, gate, monkeypatch):
    monkeypatch.setattr("chains.queue.MAX_WAITING", 4)
    gate.shut()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(client.post, "/language-detection", json={"text": "first"})
        assert gate.entered.acquire(timeout=10)
        waiting = pool.submit(client.post, "/language-detection", json={"text": ["a", "b", "c", "d"]})
        wait_until(lambda: figure(client, "bloom_lens_queue_waiting") == 4)
        response = client.post("/language-detection", json={"text": "e"})
        check_problem(response, 503, "4 texts or parts of texts wait for the model")
        assert int(response.headers["Retry-After"]) >= 1
        gate.set()
        assert {first.result(10).status_code, waiting.result(10).status_code} == {200}


def test_an_answer_that_would_come_too_late_is_given_up(client, gate):
    gate.shut()
    response = client.post("/entity-recognition", json={"text": TEXT, "timeout_s": 0.05})
    check_problem(response, 503, "until the deadline")
    assert "Retry-After" in response.headers
    assert figure(client, "bloom_lens_queue_waiting") == 0


def test_what_a_client_that_left_has_asked_is_dropped(client, gate, tiny_model):
    gate.shut()
    asked = {"text": [f"text {number}" for number in range(40)]}
    left = 'bloom_lens_requests_total{method="POST",path="/language-detection",status="499"}'
    before = figure(client, left)
    with pytest.raises(httpx.ReadTimeout):
        client.post("/language-detection", json=asked, timeout=0.5)
    wait_until(lambda: figure(client, left) == before + 1)
    assert figure(client, "bloom_lens_queue_waiting") == 0
    gate.set()
    assert client.post("/language-detection", json={"text": "next"}).status_code == 200


def test_a_text_overtakes_a_file(client, gate, tiny_model):
    gate.shut()
    rows = "".join(f"text number {number}\n" for number in range(200))
    id = upload(client, "text\n" + rows).json()["id"]
    assert gate.entered.acquire(timeout=10)
    gate.set()
    assert client.post("/language-detection", json={"text": TEXT}).status_code == 200
    assert client.get(f"/jobs/{id}").json()["done"] < 200
    wait_until(lambda: client.get(f"/jobs/{id}").json()["state"] == "done")


def test_shutting_down_answers_what_was_asked_and_leaves_jobs_to_the_next(environment, tiny_model, gate):
    environment.setattr(registry, "load", lambda name: tiny_model)
    with ThreadPoolExecutor() as pool:
        with serving() as client:
            wait_until(lambda: client.get("/health").status_code == 200)
            rows = "".join(f"text number {number}\n" for number in range(200))
            gate.shut()
            id = upload(client, "text\n" + rows).json()["id"]
            assert gate.entered.acquire(timeout=10)
            asked = pool.submit(client.post, "/language-detection", json={"text": TEXT})
            wait_until(lambda: tiny_model.llm.pipeline.queue.waiting()["interactive"] == 1)
            client.server.should_exit = True
            time.sleep(0.2)
            gate.set()
            assert asked.result(10).status_code == 200
        with serving() as client:
            assert 0 < client.get(f"/jobs/{id}").json()["done"] <= 128
            wait_until(lambda: client.get(f"/jobs/{id}").json()["state"] == "done")
            assert len(client.get(f"/jobs/{id}/result").text.splitlines()) == 201


def token_of(name):
    return f"{name}:{hashlib.sha256(f'secret {name}'.encode()).hexdigest()}"


def bearer(name):
    return {"Authorization": f"Bearer secret {name}"}


def test_with_tokens_a_job_is_its_owners_alone(environment, tiny_model):
    environment.setenv("BLOOM_LENS_SHARED", "1")
    environment.setenv("BLOOM_LENS_TOKENS", f"{token_of('ana')}, {token_of('bo')}")
    environment.setattr(registry, "load", lambda name: tiny_model)
    with serving() as client:
        wait_until(lambda: client.get("/health").status_code == 200)
        for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": "Basic secret ana"}):
            refused = client.get("/models", headers=headers)
            check_problem(refused, 401, "Authorization: Bearer")
            assert refused.headers["WWW-Authenticate"] == "Bearer"
        assert client.get("/docs").status_code == 200
        client.headers = bearer("ana")
        id = finished(client)
        for method, path in (("GET", ""), ("GET", "/result"), ("DELETE", "")):
            other = client.request(method, f"/jobs/{id}{path}", headers=bearer("bo"))
            check_problem(other, 404, "There is no job")
        assert client.get(f"/jobs/{id}/result").status_code == 200
        assert client.delete(f"/jobs/{id}").status_code == 204


@pytest.mark.parametrize(("shared", "words"), [("", "10.1.2.3"), ("1", "the log says why")])
def test_where_the_database_is_stays_between_those_who_run_it(environment, tiny_model, shared, words):
    environment.setenv("BLOOM_LENS_SHARED", shared)
    environment.setenv("BLOOM_LENS_TOKENS", token_of("ana") if shared else "")
    environment.setattr(registry, "load", lambda name: tiny_model)
    with serving() as client:

        def fail(*_):
            raise StoreError("The database at 10.1.2.3 cannot be used.")

        environment.setattr(batch.Jobs, "status", fail)
        response = client.get("/jobs/x", headers=bearer("ana"))
        check_problem(response, 503, words)
        assert ("10.1.2.3" in response.text) == (not shared) and response.headers["Retry-After"] == "30"


def test_shared_without_tokens_lets_nobody_in(environment, tiny_model):
    environment.setenv("BLOOM_LENS_SHARED", "1")
    environment.setattr(registry, "load", lambda name: tiny_model)
    with serving() as client:
        for headers in ({}, {"Authorization": "Bearer"}, {"Authorization": "Bearer x"}):
            check_problem(client.get("/models", headers=headers), 401, "Authorization: Bearer")


def test_a_caller_has_so_many_jobs_of_so_many_rows(environment, tiny_model, gate):
    environment.setenv("BLOOM_LENS_MAX_JOBS", "2")
    environment.setenv("BLOOM_LENS_MAX_ROWS", "3")
    environment.setattr(registry, "load", lambda name: tiny_model)
    with serving() as client:
        wait_until(lambda: client.get("/health").status_code == 200)
        check_problem(upload(client, CSV + "4,more\n"), 422, "has 4 rows: expected at most 3")
        gate.shut()
        first, second = upload(client).json(), upload(client).json()
        response = upload(client)
        check_problem(response, 429, "You have 2 jobs that wait or run")
        assert int(response.headers["Retry-After"]) >= 1
        assert client.delete(f"/jobs/{second['id']}").status_code == 204
        assert upload(client).status_code == 202
        gate.set()
        wait_until(lambda: client.get(f"/jobs/{first['id']}").json()["state"] == "done")
        assert upload(client).status_code == 202


def test_a_caller_who_sends_too_much_has_to_wait(environment, tiny_model):
    environment.setenv("BLOOM_LENS_RATE", "3")
    environment.setattr(registry, "load", lambda name: tiny_model)
    with serving() as client:
        answers = [client.get("/models") for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        check_problem(answers[3], 429, "More than 3 requests a minute")
        assert 1 <= int(answers[3].headers["Retry-After"]) <= 20
        wait_until(lambda: client.get("/health").status_code == 200)


def test_a_rate_is_per_caller_and_grows_back():
    rate = gateway.Rate(60)
    assert [rate.take("a", 0.0) for _ in range(60)] == [0.0] * 60
    assert rate.take("a", 0.25) == pytest.approx(0.75)
    assert rate.take("b", 0.25) == 0.0
    assert rate.take("a", 1.0) == 0.0 and rate.take("a", 1.0) > 0
    assert [gateway.Rate(0).take("a", 0.0) for _ in range(1000)] == [0.0] * 1000


def test_the_log_has_a_line_per_request_and_nothing_of_a_text(client, monkeypatch):
    lines = []
    monkeypatch.setattr(gateway.LOG, "info", lines.append)
    secret = "Zyxwv Utsrq"  # pragma: allowlist secret
    answer = client.post("/entity-recognition", json={"text": secret}, headers={"X-Request-Id": "my-1"})
    assert answer.headers["X-Request-Id"] == "my-1"
    other = client.get(f"/jobs/{secret}?text={secret}", headers={"X-Request-Id": "a b"})
    assert other.headers["X-Request-Id"] != "a b"
    wait_until(lambda: len(lines) == 2)
    assert secret[:5] not in str(lines)
    line = lines[0]
    assert (line["request"], line["path"], line["status"]) == ("my-1", "/entity-recognition", 200)
    assert lines[1]["path"] == "/jobs/{id}"


def test_every_answer_has_headers_for_browsers(client):
    for path in ("/models", "/docs", "/nothing", "/openapi.json", "/static-offline-docs/swagger-ui.css"):
        headers = client.get(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["Referrer-Policy"] == "same-origin"
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"] and headers["X-Request-Id"], path
    assert client.get("/models").headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"


def test_an_error_in_the_program_is_a_problem_and_its_message_is_not_logged(client, monkeypatch):
    def fail(*_, **__):
        raise KeyError("Zyxwv" + " Utsrq")

    written = logging.StreamHandler(io.StringIO())
    written.setFormatter(gateway.JsonLines())
    monkeypatch.setattr(gateway.LOG, "handlers", [written])
    monkeypatch.setattr(api, "detect_languages", fail)
    response = client.post("/language-detection", json={"text": TEXT})
    check_problem(response, 500, "X-Request-Id")
    assert response.headers["X-Request-Id"] and response.headers["X-Content-Type-Options"] == "nosniff"
    record = json.loads(written.stream.getvalue().splitlines()[0])
    assert (record["request"], record["error"]) == (response.headers["X-Request-Id"], "KeyError")
    assert "in fail" in record["place"] and "Zyxwv Utsrq" not in str(record)


def check_log(text):
    """A line per request and no more, whose text and query are nowhere."""
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    asked = [line for line in lines if line.get("path") == "/language-detection"]
    assert [(line["status"], line["level"], line["method"]) for line in asked] == [(200, "info", "POST")]
    assert len({line["request"] for line in lines if "request" in line}) == len(lines)
    assert text.count("/language-detection") == 1
    assert "Okafor" not in text and "Zyxwv" not in text and "text number" not in text and "HTTP/1.1" not in text


def test_dashboard_and_rest_share_a_process_that_ends_when_it_is_told_to(tmp_path, tiny_folder):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    environment = os.environ | {"BLOOM_LENS_DATA": str(tmp_path), "BLOOM_LENS_MODEL": str(tiny_folder)}
    command = [sys.executable, "-m", "uvicorn", "api:app", "--port", str(port)]
    log = tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:

            def is_ready():
                try:
                    return client.get("/health").status_code == 200
                except httpx.TransportError:
                    assert process.poll() is None, log.read_text()
                    time.sleep(0.2)
                    return False

            wait_until(is_ready, 60)
            assert "<title>Streamlit</title>" in client.get("/").text == client.get("/batch?text=Zyxwv").text
            policy = client.get("/").headers["Content-Security-Policy"]
            assert "script-src 'self' 'sha256-" in policy and "frame-ancestors 'none'" in policy
            assert "unsafe-eval" not in policy and "script-src 'self' 'unsafe-inline'" not in policy
            assert client.get("/_stcore/health").text == "ok"
            assert client.post("/language-detection", json={"text": TEXT}).status_code == 200
            rows = "".join(f"text number {number} of many more\n" for number in range(20_000))
            id = upload(client, "text\n" + rows).json()["id"]
            wait_until(lambda: client.get(f"/jobs/{id}").json()["done"] > 0)
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.wait()
    check_log(log.read_text())
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'jobs.db'}")
    with engine.connect() as connection:
        state, worker, done = connection.execute(sa.text("SELECT state, worker, done FROM jobs")).one()
    engine.dispose()
    assert (state, worker) == ("running", "") and 0 < done < 20_000 and done % 64 == 0
