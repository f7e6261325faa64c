"""A test that hangs is ended, whoever runs it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_every_test_has_a_time_limit(pytestconfig: pytest.Config) -> None:
    assert pytestconfig.pluginmanager.hasplugin("timeout")
    assert 0 < float(pytestconfig.getini("timeout")) <= 600


def test_the_plugin_is_installed_with_the_rest() -> None:
    assert "pytest-timeout==" in (ROOT / "requirements.lock").read_text()
    assert '"pytest-timeout>=' in (ROOT / "pyproject.toml").read_text()


def test_ci_itself_ends() -> None:
    """Within 80 minutes, whatever a test does: every line that runs tests is behind a limit. (All need half of it.)"""
    runs = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if re.search(r"make test|pytest", line)]
    limits = [re.match(r"timeout --kill-after=(\d+) (\d+)m ", line) for line in runs]
    assert runs
    assert all(limits), runs
    assert sum(int(found[1]) + 60 * int(found[2]) for found in limits if found) <= 80 * 60
