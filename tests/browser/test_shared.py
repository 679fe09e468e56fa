"""A shared deployment in a browser: a log-in at a small OpenID provider on the loopback interface, and the headers."""

import base64
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from joserfc import jwt
from joserfc.jwk import RSAKey
from playwright.sync_api import expect

from tests.browser.conftest import ROOT, free_port, wait_until_healthy

pytestmark = pytest.mark.browser


class Provider(ThreadingHTTPServer):
    """Knows everybody who comes as ``user``, and asks nothing."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answers)
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        self.key = RSAKey.generate_key(2048, {"kid": "1", "use": "sig", "alg": "RS256"})
        self.user = "ana"
        self.codes = {}

    def token(self, code):
        user, nonce = self.codes.pop(code)
        now = int(time.time())
        claims = {
            "iss": self.address,
            "sub": f"id-of-{user}",
            "aud": "lens",
            "iat": now,
            "exp": now + 60,
            "nonce": nonce,
        }
        signed = jwt.encode({"alg": "RS256", "kid": "1"}, claims | {"email": f"{user}@example.org"}, self.key)
        return {"access_token": "unused", "token_type": "Bearer", "id_token": signed}


class Answers(BaseHTTPRequestHandler):
    def do_GET(self):
        address, provider = urlsplit(self.path), self.server
        if address.path == "/authorize":
            asked = {name: value[0] for name, value in parse_qs(address.query).items()}
            code = f"code{len(provider.codes)}{time.monotonic_ns()}"
            provider.codes[code] = provider.user, asked["nonce"]
            self.send_response(302)
            back = urlencode({"code": code, "state": asked["state"]})
            self.send_header("Location", f"{asked['redirect_uri']}?{back}")
            self.end_headers()
        elif address.path == "/keys":
            self.send_json({"keys": [provider.key.as_dict(private=False)]})
        else:
            ends = {"authorization_endpoint": "/authorize", "token_endpoint": "/token", "jwks_uri": "/keys"}
            known = {name: provider.address + path for name, path in ends.items()} | {"issuer": provider.address}
            known["id_token_signing_alg_values_supported"] = ["RS256"]
            self.send_json(known)

    def do_POST(self):
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        basic = base64.b64decode(self.headers.get("Authorization", " ").split(" ")[1]).decode()
        assert basic == "lens:of-the-test"
        self.send_json(self.server.token(form["code"][0]))

    def send_json(self, value):
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@contextmanager
def run_shared(folder, provider):
    """The address of ``uvicorn api:app`` with the switch on."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    secrets = folder / ".streamlit" / "secrets.toml"
    secrets.parent.mkdir()
    values = {
        "redirect_uri": f"{address}/oauth2callback", "cookie_secret": "c" * 32, "client_id": "lens",
        "client_secret": "of-the-test", "server_metadata_url": f"{provider.address}/.well-known/openid-configuration",
    }  # fmt: skip
    secrets.write_text("[auth]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items()))
    environment = os.environ | {"BLOOM_LENS_DATA": str(folder / "data"), "BLOOM_LENS_SHARED": "1", "HOME": str(folder)}
    environment.pop("BLOOM_LENS_TOKENS", None)
    command = [sys.executable, "-m", "uvicorn", "api:app", "--port", str(port)]
    log = folder / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            wait_until_healthy(address, process, log)
            yield address
        finally:
            process.terminate()
            process.wait(timeout=30)


@pytest.fixture
def provider():
    provider = Provider()
    threading.Thread(target=provider.serve_forever, daemon=True).start()
    yield provider
    provider.shutdown()
    provider.server_close()


def test_users_log_in_see_their_own_jobs_and_log_out(tmp_path, provider, new_page):
    refused = []
    with run_shared(tmp_path, provider) as address:

        def log_in(user, path=""):
            provider.user = user
            page = new_page(address + path)
            page.on("console", lambda line: refused.append(line.text) if "Content Security" in line.text else None)
            expect(page.get_by_role("button", name="Log in")).to_be_visible()
            assert page.get_by_role("textbox").count() == page.get_by_test_id("stSidebarNav").count() == 0
            page.get_by_role("button", name="Log in").click()
            expect(page.get_by_role("button", name="Detect")).to_be_visible()
            return page

        ana = log_in("ana")
        ana.get_by_role("button", name="French").click()
        expect(ana.get_by_test_id("stVegaLiteChart").first).to_be_visible()
        ana.get_by_role("link", name="Batch").click()
        ana.get_by_role("button", name="Try with sample data").click()
        expect(ana.get_by_text("done in")).to_be_visible()
        job = ana.url.partition("?")[2]
        ana.get_by_role("button", name="Charts").click()
        expect(ana.get_by_test_id("stVegaLiteChart").first).to_be_visible()

        bo = log_in("bo")
        bo.goto(f"{address}/batch?{job}")
        expect(bo.get_by_text("There is no job")).to_be_visible()
        assert bo.get_by_text("Sample data", exact=True).count() == 0

        ana.get_by_role("button", name="Log out").click()
        expect(ana.get_by_role("button", name="Log in")).to_be_visible()
        ana.goto(f"{address}/batch?{job}")
        expect(ana.get_by_role("button", name="Log in")).to_be_visible()
        assert ana.get_by_text("Sample data").count() == 0
    assert refused == []
