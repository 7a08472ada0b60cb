"""What our compose files promise, read from the files: the engine that would enforce it is not needed to break it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import stat
import subprocess
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import check_jsonschema
import pytest
import yaml
from jsonschema import Draft7Validator
from pydantic import ValidationError

from app.core.settings import Settings
from tests.docker.compose_file import (
    ENV_EXAMPLE,
    MAIN,
    REMOTE,
    ROOT,
    WORKER_ENV_EXAMPLE,
    WORKERS,
    Unset,
    assignments,
    load,
    secrets_filled_in,
    variables_in,
)
from tests.docker.stack import seconds

FILES = {MAIN: ENV_EXAMPLE, WORKERS: WORKER_ENV_EXAMPLE}
PROFILES = {"gpu", "gpus-2", "gpus-4", "gpus-8", "cpu", "store", "tls", "metrics"}
SECRETS = {"POSTGRES_PASSWORD", "REDIS_PASSWORD", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
# What docker compose itself reads from .env, and what only the file for workers on other hosts uses.
OF_COMPOSE, OF_REMOTE = {"COMPOSE_PROFILES", "COMPOSE_FILE"}, {"PRIVATE_ADDRESS"}


def document(path: Path) -> dict[str, Any]:
    return load(path, secrets_filled_in(FILES[path]))


def every_service() -> list[Any]:
    return [
        pytest.param(service, id=f"{path.name}:{name}")
        for path in FILES
        for name, service in document(path)["services"].items()
    ]


@pytest.mark.parametrize("path", [*FILES, REMOTE], ids=lambda path: path.name)
def test_the_file_is_of_the_specification(path: Path) -> None:
    package = Path(check_jsonschema.__file__).parent
    schema = json.loads((package / "builtin_schemas/vendor/compose-spec.json").read_text(encoding="utf-8"))
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert [error.message for error in Draft7Validator(schema).iter_errors(content)] == []


@pytest.mark.parametrize("service", every_service())
def test_a_service_can_do_no_more_than_it_must(service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"]), "a number, and not root's"
    assert not {"privileged", "pid", "ipc", "devices", "extra_hosts"} & set(service)
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    assert re.fullmatch(r"[1-9]\d*g", service["mem_limit"])
    assert 100 < service["pids_limit"] < 10_000


@pytest.mark.parametrize("service", every_service())
def test_a_service_is_watched_and_started_again(service: dict[str, Any]) -> None:
    if service["restart"] == "no":
        assert service["healthcheck"] == {"disable": True}, "the image's own check is for what stays"
        return
    assert service["restart"] == "unless-stopped"
    check = service["healthcheck"]
    assert seconds(check["timeout"]) < seconds(check["interval"])
    assert check["test"][0] in ("CMD", "CMD-SHELL")
    assert check["retries"] >= 3


@pytest.mark.parametrize("service", every_service())
def test_an_image_has_an_exact_version(service: dict[str, Any]) -> None:
    name, _, tag = service["image"].rpartition(":")
    if name.startswith("gklbench-"):
        assert tag == "local"
    else:
        assert re.match(r"v?\d+\.\d+", tag), tag


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_example_names_what_the_file_uses(path: Path) -> None:
    named = set(assignments(FILES[path], commented=True)) - OF_COMPOSE - OF_REMOTE
    assert named == variables_in(path)


def test_the_example_names_what_workers_elsewhere_need() -> None:
    assert variables_in(REMOTE) == OF_REMOTE <= set(assignments(ENV_EXAMPLE, commented=True))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_setting_in_the_file_exists(path: Path) -> None:
    known = {f"GKLBENCH_{name.upper()}" for name in Settings.model_fields}
    for text in (path.read_text(encoding="utf-8"), FILES[path].read_text(encoding="utf-8")):
        assert set(re.findall(r"GKLBENCH_[A-Z_]+", text)) <= known


def test_every_setting_can_be_set() -> None:
    content = yaml.safe_load(MAIN.read_text(encoding="utf-8"))
    handed = {name for service in content["services"].values() for name in service.get("environment", {})}
    assert {f"GKLBENCH_{name.upper()}" for name in Settings.model_fields} <= handed


def test_the_example_explains_limits_as_the_settings_do() -> None:
    limits = ENV_EXAMPLE.read_text(encoding="utf-8").partition("# --- limits and times")[2]
    written = {name: comment for comment, name in re.findall(r"^# (.+)\n# GKLBENCH_(\w+)=", limits, re.MULTILINE)}
    assert len(written) > 30
    assert written == {name: Settings.model_fields[name.lower()].description for name in written}


def test_the_example_shows_the_defaults() -> None:
    shown = {name: value for name, value in assignments(ENV_EXAMPLE, commented=True).items() if value}
    # These are compose's own, and the file says so.
    decided = {"GKLBENCH_API_PROCESSES", "GKLBENCH_TRUSTED_PROXIES"}
    checked = 0
    for name, value in shown.items():
        field = name.removeprefix("GKLBENCH_").lower()
        if field in Settings.model_fields and name not in decided:
            default = getattr(Settings.model_construct(), field)
            assert type(default)(value == "True" if isinstance(default, bool) else value) == default, name
            checked += 1
    assert checked > 25
    memory = {f"{whose}_MEMORY" for whose in ("API", "WORKER", "POSTGRES", "STORE", "PROMETHEUS")}
    own = {
        name: shown[name]
        for name in decided | memory | {"WORKER_SHM_SIZE", "API_PORT", "API_ADDRESS", "PROMETHEUS_PORT"}
    }
    for name, value in own.items():
        assert f"${{{name}:-{value}}}" in MAIN.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(SECRETS))
def test_no_secret_has_a_default(name: str) -> None:
    filled = secrets_filled_in(ENV_EXAMPLE)
    assert assignments(ENV_EXAMPLE, commented=False)[name] == "changethis"
    for value in ("", None):
        variables = {key: known for key, known in filled.items() if key != name}
        with pytest.raises(Unset, match=f"{name}: run docker/make-env"):
            load(MAIN, variables if value is None else variables | {name: value})


@pytest.mark.parametrize("name", ["POSTGRES_PASSWORD", "REDIS_PASSWORD"])
def test_an_untouched_example_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the settings that `check` reads before the database is begun with that password."""
    services = load(MAIN, secrets_filled_in(ENV_EXAMPLE) | {name: "changethis"})["services"]
    for key, value in services["check"]["environment"].items():
        monkeypatch.setenv(key, value)
    with pytest.raises(ValidationError, match="changethis"):
        Settings()


def test_nothing_starts_before_the_settings_are_checked() -> None:
    for path in FILES:
        services = document(path)["services"]

        def comes_after_check(name: str, services: dict[str, Any] = services) -> bool:
            if name == "check":
                return True
            needed = services[name]["depends_on"]
            return any(
                how["condition"] in ("service_completed_successfully", "service_healthy")
                and how.get("required", True)
                and comes_after_check(other)
                for other, how in needed.items()
            )

        assert services["check"]["command"] == ["check-settings"]
        assert services["check"]["network_mode"] == "none"
        for name in services:
            assert comes_after_check(name), name


def test_only_what_must_be_is_published() -> None:
    services = document(MAIN)["services"]
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert published == {
        "api": ["127.0.0.1:8000:8000"],
        "prometheus": ["127.0.0.1:9090:9090"],
        "caddy": ["80:8080", "443:8443", "443:8443/udp"],
    }
    assert all("ports" not in service for service in document(WORKERS)["services"].values())
    remote = load(REMOTE, {"PRIVATE_ADDRESS": "10.0.0.1"})["services"]
    ports = {name: service["ports"] for name, service in remote.items()}
    assert ports == {
        "postgres": ["10.0.0.1:5432:5432"],
        "redis": ["10.0.0.1:6379:6379"],
        "store": ["10.0.0.1:8333:8333"],
    }
    with pytest.raises(Unset):
        load(REMOTE, {})


def test_database_broker_and_store_are_reached_from_inside_only() -> None:
    content = document(MAIN)
    assert content["networks"]["back"] == {"internal": True}
    assert content["networks"]["jobs"] == {"internal": "true"}
    networks = {name: set(service.get("networks", [])) for name, service in content["services"].items()}
    for name in ("postgres", "redis", "store", "migrate"):
        assert networks[name] == {"back"}
    assert {name for name, joined in networks.items() if "front" in joined} == {"api", "caddy", "prometheus"}
    assert {name for name, joined in networks.items() if "jobs" in joined} == {
        "relay",
        *(name for name in networks if name.startswith("worker")),
    }


def test_the_proxy_that_is_trusted_is_caddy() -> None:
    content = document(MAIN)
    address = content["services"]["caddy"]["networks"]["front"]["ipv4_address"]
    assert content["services"]["api"]["environment"]["GKLBENCH_TRUSTED_PROXIES"] == address
    (addresses,) = content["networks"]["front"]["ipam"]["config"]
    assert ip_address(address) in ip_network(addresses["subnet"])
    assert ip_address(address) not in ip_network(addresses["ip_range"]), "another service may be given it first"


def test_profiles_are_named_in_the_example() -> None:
    used = {p for service in document(MAIN)["services"].values() for p in service.get("profiles", [])}
    assert used == PROFILES
    comment = ENV_EXAMPLE.read_text(encoding="utf-8").split("COMPOSE_PROFILES=")[0].rpartition("\n\n")[2]
    assert set(re.findall(r"[a-z]+(?:-\d)?", comment)) >= PROFILES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_each_gpu_has_one_worker(path: Path) -> None:
    services = document(path)["services"]
    for profile, gpus in (("gpu", 1), ("gpus-2", 2), ("gpus-4", 4), ("gpus-8", 8), ("cpu", 0)):
        ids = []
        for service in services.values():
            if profile in service.get("profiles", []) and "deploy" in service:
                (device,) = service["deploy"]["resources"]["reservations"]["devices"]
                assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
                ids += device["device_ids"]
        assert ids == [str(number) for number in range(gpus)]


def workers(path: Path) -> list[dict[str, Any]]:
    return [service for name, service in document(path)["services"].items() if name.startswith("worker")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_worker_has_the_time_to_save_what_it_has(path: Path) -> None:
    for service in workers(path):
        asked = float(service["environment"]["GKLBENCH_STOP_GRACE_SECONDS"])
        assert seconds(service["stop_grace_period"]) >= asked + 30


def test_a_worker_elsewhere_is_the_same_worker() -> None:
    (here, *_), (there, *_) = workers(MAIN), workers(WORKERS)
    differs = {"environment", "depends_on", "networks"}
    assert {k: v for k, v in here.items() if k not in differs} == {k: v for k, v in there.items() if k not in differs}
    for name, value in there["environment"].items():
        if not name.endswith("_URL"):
            assert here["environment"].get(name) in (value, None if name.startswith("AWS") else value), name


def test_workers_have_no_name_of_their_own() -> None:
    """A worker is known by its host's name and its process's number, which in containers is the same everywhere."""
    for path in FILES:
        for service in workers(path):
            assert not {"hostname", "container_name"} & set(service)


def test_secrets_are_made_once_and_for_the_owner_alone(tmp_path: Path) -> None:
    target = tmp_path / ".env"
    command = [ROOT / "docker/make-env", ".env.example", target]
    subprocess.run(command, check=True, capture_output=True)
    made = assignments(target, commented=False)
    example = assignments(ENV_EXAMPLE, commented=False)
    assert {name for name in made if made[name] != example[name]} == SECRETS
    assert all(re.fullmatch(r"[0-9a-f]{48}", made[name]) for name in SECRETS)
    assert len({made[name] for name in SECRETS}) == len(SECRETS)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert "is there already" in again.stderr
    assert assignments(target, commented=False) == made


def test_the_shell_of_a_command_reads_what_was_meant() -> None:
    """`$$` is one dollar for the container's shell; a single one would have been put in by Compose."""
    redis = document(MAIN)["services"]["redis"]
    assert '"$REDIS_PASSWORD"' in redis["command"][2]
    assert redis["healthcheck"]["test"][1].startswith('REDISCLI_AUTH="$REDIS_PASSWORD"')
    (server,) = [line for line in redis["command"][2].splitlines() if line.startswith("exec ")]
    words = shlex.split(server)
    assert words[words.index("--maxmemory-policy") + 1] == "noeviction"
    assert words[words.index("--appendonly") + 1] == "yes"
    assert words[words.index("--save") + 1] == ""


def test_prometheus_asks_the_api_and_waits_for_its_answer() -> None:
    path = ROOT / "docker/prometheus.yml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    (scraped,) = content["scrape_configs"]
    assert scraped["static_configs"] == [{"targets": ["api:8000"]}]
    assert seconds(content["global"]["scrape_timeout"]) == 15 < seconds(content["global"]["scrape_interval"])
    service = document(MAIN)["services"]["prometheus"]
    assert "./docker/prometheus.yml:/etc/prometheus/prometheus.yml:ro" in service["volumes"]
    assert "--config.file=/etc/prometheus/prometheus.yml" in service["command"]


def test_caddy_listens_where_ports_lead_and_hands_on_each_event() -> None:
    text = (ROOT / "docker/Caddyfile").read_text(encoding="utf-8")
    service = document(MAIN)["services"]["caddy"]
    ports = {name: re.search(rf"{name} (\d+)", text)[1] for name in ("http_port", "https_port")}  # type: ignore[index]
    published = {port.split("/")[0].split(":")[1] for port in service["ports"]}
    assert published == set(ports.values())
    assert all(int(port) > 1024 for port in published), "it has no capability for others"
    assert "flush_interval -1" in text
    assert "reverse_proxy api:8000" in text
    # Event streams have none of the types that are compressed.
    compressed = re.findall(r"header Content-Type (\S+)", text)
    assert len(compressed) > 3
    assert not any("event-stream" in kind or kind.startswith(("text/*", "*")) for kind in compressed)
    (asked,) = [word for word in service["healthcheck"]["test"] if word.startswith("http")]
    assert asked.rstrip("/") in text


@pytest.mark.skipif(shutil.which("caddy") is None, reason="caddy is not on the PATH")
def test_caddy_understands_its_file(tmp_path: Path) -> None:
    command = ["caddy", "adapt", "--config", ROOT / "docker/Caddyfile", "--adapter", "caddyfile"]
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "DOMAIN": "bench.example.org"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "bench.example.org" in done.stdout
    assert '"flush_interval":-1' in done.stdout


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not on the PATH")
def test_prometheus_understands_its_file() -> None:
    subprocess.run(["promtool", "check", "config", ROOT / "docker/prometheus.yml"], check=True, capture_output=True)
