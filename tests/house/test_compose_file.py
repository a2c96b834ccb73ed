"""docker-compose.yml and the Dockerfiles: valid, and in step with the services and the settings this version has."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway import app, settings
from gateway.store import postgresql

ROOT = Path(__file__).parents[2]
GIVEN = {"DOMAIN": "in.example.org", "GATEWAY_PASSWORD": "secret", "ERLANG_COOKIE": "cookie"}
BESIDE = {"alarms", "suspects"}  # they run in every process that has something to look at, or make it themselves
COMPOSE = shutil.which("docker-compose")
HADOLINT = shutil.which("hadolint", path=f"{ROOT / '.venv' / 'bin'}:{os.environ.get('PATH', '')}")


@pytest.fixture(scope="module")
def composed() -> Any:
    """The file as docker-compose understands it, variables filled in."""
    if COMPOSE is None:
        pytest.skip("no docker-compose here: `make services` installs one")
    words = [COMPOSE, "-f", str(ROOT / "docker-compose.yml"), "config"]
    done = subprocess.run(words, env=os.environ | GIVEN, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


def ours(composed: Any) -> dict[str, Any]:
    return {name: it for name, it in composed["services"].items() if it.get("image", "").startswith("gateway:")}


def test_every_service_of_this_version_is_there_and_no_other(composed: Any) -> None:
    runs = {it["command"][1] for it in ours(composed).values() if it["command"][0] == "run"}
    assert runs == set(app.SERVICES) - BESIDE


def test_every_setting_is_one_this_version_knows_and_accepts(composed: Any) -> None:
    for it in ours(composed).values():
        environment = {key: str(value) for key, value in it["environment"].items()}
        found = settings.load(environment=environment)
        assert found.domains == ("in.example.org",)
        app.check_values(found)


def test_whatever_is_not_ours_says_when_it_is_ready(composed: Any) -> None:
    others = set(composed["services"]) - set(ours(composed))
    assert others == {"rabbit1", "rabbit2", "rabbit3", "postgres", "redis", "postfix"}
    assert all("healthcheck" in composed["services"][name] for name in others)


def test_our_services_may_do_little(composed: Any) -> None:
    for it in ours(composed).values():
        assert (it["read_only"], it["cap_drop"], it["init"]) == (True, ["ALL"], True)


def test_queues_are_declared_when_the_whole_cluster_is_there(composed: Any) -> None:
    """A quorum queue keeps the replicas it got at its declaration."""
    nodes = {name for name, it in composed["services"].items() if it.get("image", "").startswith("rabbitmq:")}
    for name, it in ours(composed).items():
        assert {node: it["depends_on"].get(node, {}).get("condition") for node in nodes} == dict.fromkeys(
            nodes, "service_healthy"
        ), name


def test_there_are_connections_enough_for_twenty_processes(composed: Any) -> None:
    settings_given = composed["services"]["postgres"]["command"]
    most = next(int(word.partition("=")[2]) for word in settings_given if word.startswith("max_connections="))
    assert most >= 20 * (postgresql.CONNECTIONS + 2) + 20  # two bells, and some for people


def test_every_folder_a_volume_is_mounted_at_belongs_to_the_image_s_user(composed: Any) -> None:
    """A named volume takes its owner from the image's folder; where there is none it belongs to root, and we may not write."""
    made = next(line for line in (ROOT / "Dockerfile").read_text().splitlines() if "install -d -o gateway" in line)
    mounted = {volume.split(":")[1] for it in ours(composed).values() for volume in it["volumes"]}
    assert mounted == {"/var/lib/gateway", "/run/gateway"}
    assert mounted <= set(made.split())


@pytest.mark.skipif(HADOLINT is None, reason="SKIPPED LOUDLY: hadolint has no wheel for this machine")
@pytest.mark.parametrize("name", ["Dockerfile", "deploy/compose/postfix.Dockerfile"])
def test_hadolint_finds_nothing(name: str) -> None:
    assert HADOLINT is not None
    done = subprocess.run([HADOLINT, str(ROOT / name)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_does_not_run_as_root() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("USER ")] == ["USER 10001"]
