"""A pytest plugin that writes down how each test and subtest ended: ``-p support.outcomes --outcomes FILE``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_WORST = {"passed": 0, "skipped": 1, "failed": 2}


def pytest_addoption(parser: Any) -> None:
    parser.addoption("--outcomes", type=Path, required=True)


class _Outcomes:
    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        subtest = getattr(report, "context", None)
        name = (
            report.nodeid if subtest is None else f"{report.nodeid} subtest: {subtest.msg or ''} {dict(subtest.kwargs)}"
        )
        outcome = report.outcome
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            outcome = f"failed: {str(getattr(crash, 'message', '')).partition(':')[0]}"
        known = self.found.get(name, "passed")
        if _WORST[outcome.partition(":")[0]] >= _WORST[known.partition(":")[0]]:
            self.found[name] = outcome

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.found[report.nodeid] = "failed: not collected"


def pytest_configure(config: Any) -> None:
    config.pluginmanager.register(_Outcomes(), "inferspan-outcomes")


def pytest_unconfigure(config: Any) -> None:
    outcomes = config.pluginmanager.get_plugin("inferspan-outcomes")
    config.getoption("outcomes").write_text(json.dumps(outcomes.found, indent=1), encoding="utf-8")
