"""The pages behind proxies as people have them: nginx as it comes, under a path of a name, with its limit of 1 MB."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import numpy as np
import pytest
from playwright.sync_api import Browser, expect
from safetensors.numpy import save_file

from app.cli.embedded import EmbeddedService
from app.core.settings import Settings
from app.db.database import Database
from gkl.client import Client
from gkl.files import sha256_of
from tests.cluster import free_port, until
from tests.flow.test_browser import CHROMIUM, watched
from tests.flow.test_browser import browser as _browser_fixture
from tests.servers import limited_proxy, served
from tests.tokens import token_of

browser = _browser_fixture
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
DEPLOYMENT = Path(__file__).parents[2] / "docs" / "deployment.md"

pytestmark = [
    pytest.mark.parametrize("database_url", ["sqlite"], indirect=True),
    pytest.mark.skipif(CHROMIUM is None and not os.environ.get("CI"), reason="needs Chromium on the PATH"),
]
needs_nginx = pytest.mark.skipif(NGINX is None and not os.environ.get("CI"), reason="needs nginx on the PATH")

_CONFIGURATION = """
{user}
worker_processes 1;
pid nginx.pid;
error_log stderr;
events {{ }}
http {{
    access_log off;
    client_body_temp_path body; proxy_temp_path proxy;
    fastcgi_temp_path fcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    server {{ listen 127.0.0.1:{port}; location {location} {{ proxy_pass {upstream}; {headers} }} }}
}}
"""


@contextmanager
def nginx(directory: Path, location: str, upstream: str, headers: str) -> Iterator[str]:
    """On a port of its own; returns the address of the name that it serves."""
    assert NGINX is not None
    port = free_port()
    directory.mkdir()
    user = "user root;" if os.geteuid() == 0 else ""
    text = _CONFIGURATION.format(user=user, port=port, location=location, upstream=upstream, headers=headers)
    (directory / "nginx.conf").write_text(text)
    command = [NGINX, "-p", str(directory), "-c", str(directory / "nginx.conf"), "-e", "stderr", "-g", "daemon off;"]
    with subprocess.Popen(command) as process:
        try:
            until(lambda: _answers(f"http://127.0.0.1:{port}"), 20)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def _answers(url: str) -> bool:
    try:
        return httpx2.get(url, trust_env=False).status_code > 0
    except httpx2.TransportError:
        return False


def documented_headers() -> str:
    """Those that docs/deployment.md says a proxy has to have."""
    block = DEPLOYMENT.read_text().partition("    location / {\n")[2].partition("    }")[0]
    lines = [line.strip() for line in block.splitlines() if "proxy_pass" not in line]
    assert len(lines) > 3
    return " ".join(lines)


@pytest.mark.long
@needs_nginx
@pytest.mark.parametrize("after", ["", "/"], ids=["handed on", "taken off"])
def test_somebody_works_under_a_path_behind_nginx(
    browser: Browser, settings: Settings, database: Database, tmp_path: Path, after: str
) -> None:
    token = token_of(database, "Ada")
    changes = {"port": free_port(), "access": "tokens", "root_path": "/bench", "poll_seconds": 0.5}
    weights = tmp_path / "weights.safetensors"
    save_file({"weight": np.random.default_rng(0).standard_normal(750_000).astype(np.float32)}, weights)
    with (
        EmbeddedService(settings.model_copy(update=changes)) as service,
        nginx(
            tmp_path / "nginx", "/bench/", f"http://127.0.0.1:{service.settings.port}{after}", documented_headers()
        ) as url,
        watched(browser, f"{url}/bench/") as page,
    ):
        page.goto(f"{url}/bench/submit/train")
        page.get_by_role("link", name="Log in").first.click()
        page.get_by_label("Token").fill(token)
        page.get_by_role("button", name="Log in").click()
        expect(page.locator("nav")).to_contain_text("Ada")
        page.get_by_role("link", name="Submit").click()
        page.get_by_role("link", name="Train a network").click()
        page.locator("[name=objective]").select_option("trades")
        page.locator("[name=name]").fill("Under a path")
        page.locator("[name=epochs]").fill("1")
        page.locator("[name=architecture]").select_option("tiny_cnn")
        page.locator("[name=evaluation]").select_option("none")
        page.get_by_role("button", name="Send the job").click()
        page.wait_for_url("**/bench/jobs/1")
        # Only the event stream makes it move.
        expect(page.locator(".lead .state")).to_have_text("succeeded", timeout=90_000)
        page.goto(f"{url}/bench/submit/evaluate")
        page.get_by_label("File of weights").set_input_files(weights)
        expect(page.get_by_role("status")).to_contain_text("Sent: ")
        assert page.locator("[name=weights]").input_value() == sha256_of(weights)
        page.goto(f"{url}/bench/api")
        page.get_by_text("List jobs, newest first", exact=True).click()
        page.get_by_role("button", name="Try it out").click()
        page.get_by_role("button", name="Execute").click()
        expect(page.locator(".request-url")).to_contain_text(f"{url}/bench/api/v1/jobs")
        expect(page.locator(".live-responses-table tbody .response-col_status")).to_contain_text("200")
        with Client(f"{url}/bench", token) as client:
            assert client.job(1).name == "Under a path"
            save_file({"weight": np.ones(750_000, np.float32)}, weights)
            assert client.upload(weights).sha256 == sha256_of(weights)
            assert [event.data["state"] for event in client.events(1) if event.type == "state"][-1] == "succeeded"


@needs_nginx
def test_nginx_as_it_comes_is_told_what_it_lacks(settings: Settings, database: Database, tmp_path: Path) -> None:
    with (
        served(settings.model_copy(update={"access": "tokens"})) as service,
        nginx(tmp_path / "nginx", "/", service, "") as url,
    ):
        answer = httpx2.post(f"{url}/login", data={"token": token_of(database, "Ada")}, headers={"Origin": url})
        assert answer.status_code == 403
        assert "proxy_set_header Host $http_host" in answer.text


@pytest.mark.parametrize("max_bytes", [1024**2, 1000])
def test_a_page_sends_weights_through_a_proxy_with_a_limit(
    browser: Browser, settings: Settings, tmp_path: Path, max_bytes: int
) -> None:
    weights = tmp_path / "weights.safetensors"
    save_file({"weight": np.ones(750_000, np.float32)}, weights)
    with served(settings) as url, limited_proxy(url, max_bytes=max_bytes) as proxy:
        page = browser.new_page()
        page.goto(f"{proxy.url}/submit/evaluate")
        page.get_by_label("File of weights").set_input_files(weights)
        if max_bytes > 64 * 1024:
            expect(page.get_by_role("status")).to_contain_text(f"Sent: {sha256_of(weights)}")
        else:
            expect(page.get_by_role("status")).to_contain_text(
                "A proxy in front of the service refuses the file as too large"
            )
        expect(page.locator("[data-upload] progress")).to_be_hidden()
        page.close()


def test_a_page_of_a_proxy_is_not_shown(browser: Browser, settings: Settings, tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    save_file({"weight": np.ones(10, np.float32)}, weights)
    with served(settings) as url, limited_proxy(url) as proxy:
        page = browser.new_page()
        page.goto(f"{proxy.url}/submit/evaluate")
        proxy.status = 401
        page.get_by_label("File of weights").set_input_files(weights)
        expect(page.get_by_role("status")).to_contain_text("A proxy in front of the service answered 401")
        page.close()
