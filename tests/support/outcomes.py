"""A pytest plugin that writes down how each test ended: ``-p support.outcomes --outcomes FILE``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

_WORST = {"passed": 0, "skipped": 1, "failed": 2}


def pytest_addoption(parser: Any) -> None:
    parser.addoption("--outcomes", type=Path, required=True)


class _Outcomes:
    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: Any, call: Any) -> Any:
        report = yield
        outcome = report.outcome
        if report.failed:
            outcome = f"failed: {call.excinfo.typename}"
        known = self.found.get(item.nodeid, "passed")
        if _WORST[outcome.partition(":")[0]] >= _WORST[known.partition(":")[0]]:
            self.found[item.nodeid] = outcome
        return report

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.found[report.nodeid] = "failed: not collected"


def pytest_configure(config: Any) -> None:
    config.pluginmanager.register(_Outcomes(), "inferspan-outcomes")


def pytest_unconfigure(config: Any) -> None:
    outcomes = config.pluginmanager.get_plugin("inferspan-outcomes")
    config.getoption("outcomes").write_text(json.dumps(outcomes.found, indent=1), encoding="utf-8")
