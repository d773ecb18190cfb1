"""The page of ``inferspan report``: what is on it, that no text of a run becomes markup, that a browser draws it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import plotly.graph_objects
import pytest

from inferspan.bench import report
from inferspan.bench.result_file import save
from inferspan.bench.results import (
    FORMAT,
    VERSION,
    Configuration,
    Environment,
    Failure,
    Rest,
    Result,
    Samples,
    Stage,
    Target,
    Timeline,
    Warmup,
    Workload,
)
from inferspan.cli import main

HOSTILE = (
    "</script><script>document.title='hit'</script><img src=x onerror=\"document.title='hit'\"><b>model</b> & 'co'"
)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
BROWSER_S = 120


def configuration(seed: int, batch_size: int, input_tokens: int | None, count: int = 12) -> Configuration:
    latency = 0.005 * (1 + batch_size / 4) * np.exp(0.1 * np.random.default_rng(seed).normal(size=count))
    start = (10 + np.concatenate([[0.0], np.cumsum(latency)[:-1]])).tolist()
    samples = Samples(start, start, latency.tolist(), [0] * count)
    samples.time_to_first_token_s = (latency * 0.4).tolist()
    samples.inter_token_s = [[value / 10] * 2 for value in latency]
    samples.phases_s = {
        "tokenize": (latency * 0.1).tolist(),
        "forward": (latency * 0.8).tolist(),
        "prefill": (latency * 0.3).tolist(),
        "decode": (latency * 0.5).tolist(),
    }
    samples.fragmentation = [0.25] * count
    return Configuration(
        batch_size,
        input_tokens,
        16,
        warmup=Warmup(batch_size != 2),
        samples=samples,
        duration_s=float(latency.sum()),
        resident_peak_bytes=700 << 20,
    )


def result(label: str = "tiny", note: str = "a note", **versions: str) -> Result:
    target = Target(label, "pipeline", label, "text-generation", {"dtype": label}, Rest(1.0, resident_bytes=600 << 20))
    target.load_s, target.cold = 1.5, Samples([0.0], [0.0], [0.8], [0])
    target.configurations = [configuration(size, size, 64) for size in (1, 2, 4)]
    target.configurations.append(Configuration(8, 64, 16, failure=Failure("OutOfMemoryError", f"no, {note}", True)))
    stages = [Stage("idle", 0, 2), Stage("measure", 10, 11, label, 0), Stage("measure", 11, 12, label, 1)]
    timeline = Timeline(stages, [0.0, 5.0, 12.0], [500 << 20, None, 700 << 20], [0.0, 0.5, 0.9])
    environment = Environment({"cpu_model": "EPYC", "memory_bytes": 8 << 30}, [], versions)
    return Result(
        FORMAT,
        VERSION,
        "2026-01-01T00:00:00+00:00",
        "1.0",
        ["inferspan", "bench", label],
        Workload("closed", batch_sizes=[1, 2, 4, 8], input_tokens=[64]),
        environment,
        [target],
        timeline=timeline,
        notes=[note],
    )


@pytest.fixture(autouse=True)
def small_plotly(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its five megabytes take a parser of HTML seconds; only a browser needs them."""
    if "browser" not in request.node.name:
        monkeypatch.setattr(report, "get_plotlyjs", lambda: "/* plotly.js */")


class _Page(HTMLParser):
    """Elements, scripts and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: dict[str, int] = {}
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text = ""
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self._inside = tag
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            attributes, before = self.scripts[-1]
            self.scripts[-1] = (attributes, before + data)
        elif self._inside != "style":
            self.text += data

    @property
    def plots(self) -> list[dict[str, object]]:
        return list(json.loads(next(body for attributes, body in self.scripts if attributes.get("id") == "plots")))


def render(*results: Result) -> _Page:
    return _Page(report.render([(f"{n}.json", each) for n, each in enumerate(results)], threshold=0.15))


def test_report_of_one_run_has_its_plots_tables_and_failures() -> None:
    page = render(result(torch="2.4"))

    text = re.sub(r"\s+", " ", page.text)
    for told in ("Throughput at 64 tokens", "All requests at 64 tokens", "tiny at 64 tokens", "batch 8 at 64 tokens",
                 "OutOfMemoryError: no, a note", "out of memory", "(not steady)", "inferspan bench tiny", "EPYC",
                 "8,192 MiB", "the knee is at batch", "25%"):  # fmt: skip
        assert told in text
    assert "against" not in text
    kinds = [{trace["type"] for trace in plot["data"]} for plot in page.plots]  # type: ignore[attr-defined, index]
    assert kinds == [{"scatter"}, {"scatter"}, {"scatter"}, {"box"}, {"bar"}, {"scatter"}]


def test_report_plots_are_what_plotly_takes() -> None:
    for plot in render(result(), result("other")).plots:
        plotly.graph_objects.Figure(plot)  # raises on anything that it does not know


def test_report_of_two_runs_compares_them_and_marks_what_differs() -> None:
    one, other = result(torch="2.4", numpy="2"), result(torch="2.5", numpy="2")
    one.targets[0].configurations[1] = configuration(5, 2, 64, count=60)
    other.targets[0].configurations[1] = slower = configuration(6, 2, 64, count=60)
    slower.samples.latency_s = [2 * value for value in slower.samples.latency_s]

    page = report.render([("a.json", one), ("b.json", other)], threshold=0.15)

    text = re.sub(r"\s+", " ", _Page(page).text)
    assert "b.json against a.json" in text
    assert "versions.torch is 2.4 in the baseline, 2.5 here" in text
    assert "regressions of 15% or more" in text
    row = re.search(r"<tr><td[^>]*>(?:(?!</tr>).)*torch.*?</tr>", page, re.DOTALL)
    assert row is not None
    assert "≠" in row.group()
    row = re.search(r'<tr><td title="numpy">.*?</tr>', page, re.DOTALL)
    assert row is not None
    assert "≠" not in row.group()
    assert "tiny (a.json)" in text
    assert "tiny (b.json)" in text


def test_report_of_runs_on_other_hardware_says_so_loudly() -> None:
    one, other = result(), result()
    other.environment.machine["cpu_model"] = "Xeon"

    assert "These runs should not be compared: machine.cpu_model is EPYC in the baseline, Xeon here" in (
        render(one, other).text
    )


def test_report_of_a_run_in_which_nothing_was_measured_has_its_reason() -> None:
    run = result()
    run.targets[0].configurations, run.partial = [], True
    run.targets[0].failure = Failure("TargetError", "there is no such folder")
    run.timeline = Timeline()

    page = render(run)

    assert page.plots == []
    assert "there is no such folder" in page.text
    assert "Partial" in page.text


def hostile() -> Result:
    found = result(HOSTILE, HOSTILE, **{HOSTILE: HOSTILE})
    found.timeline.stages.append(Stage(HOSTILE, 12, 13))
    samples = found.targets[0].configurations[0].samples
    samples.phases_s[HOSTILE] = samples.phases_s["tokenize"]
    found.targets[0].configurations[0].errors = {HOSTILE: 3}
    found.targets[0].configurations[3].failure = Failure(HOSTILE, HOSTILE)
    return found


def test_report_escapes_all_text_of_a_run() -> None:
    plain, page = render(result(), result()), render(hostile(), hostile())

    new = {tag: count for tag, count in page.tags.items() if tag not in plain.tags}
    assert new == {}
    assert page.tags["script"] == 3
    assert [attributes.get("nonce") for attributes, _ in page.scripts] == [page.scripts[0][0]["nonce"]] * 3
    assert HOSTILE in page.text
    names = [trace["name"] for plot in page.plots for trace in plot["data"]]  # type: ignore[attr-defined]
    assert any("&lt;script&gt;" in name for name in names)
    assert not any("<" in name for name in names)


def test_report_needs_nothing_from_elsewhere() -> None:
    page = report.render([("a.json", result())], threshold=0.15)

    assert re.findall(r"(?:src|href)=|url\(|@import|https?://", page) == []
    assert "default-src 'none'" in page


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        pytest.param(["a.json"], ["a.json"], id="one"),
        pytest.param(["x/a.json", "y/a.json"], ["x/a.json", "y/a.json"], id="of one name"),
        pytest.param(["a.json", "a.json"], ["a.json (1)", "a.json (2)"], id="the same twice"),
    ],
)
def test_report_names_files_as_short_as_tells_them_apart(paths: list[str], names: list[str]) -> None:
    assert report.names_of([Path(path) for path in paths]) == names


def test_report_command_writes_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(result(), tmp_path / "a.json")

    assert main(["report", str(tmp_path / "a.json"), "-o", str(tmp_path / "page.html")]) == 0

    assert capsys.readouterr().out == f"{tmp_path / 'page.html'}: open it in a browser\n"
    assert (tmp_path / "page.html").read_text("utf-8").startswith("<!DOCTYPE html>")


def test_report_command_of_a_foreign_file_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.json").write_text("{}")

    assert main(["report", str(tmp_path / "a.json"), "-o", str(tmp_path / "page.html")]) == 1

    assert "is no result of `inferspan bench`" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


def test_report_in_a_browser_draws_every_plot_without_a_script_error(tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"NOT TESTED IN A BROWSER: none of {', '.join(BROWSERS)} is on PATH")
    page = tmp_path / "page.html"
    page.write_text(report.render([("a.json", hostile()), ("b.json", result())], threshold=0.15), "utf-8")
    command = [browser, "--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--no-first-run", "--virtual-time-budget=20000"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--no-sandbox")  # which Chromium refuses to root

    done = subprocess.run(
        [*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=BROWSER_S, check=False
    )

    assert "</html>" in done.stdout, done.stderr[-2000:]
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    plots = page.read_text("utf-8").count('<div class="plot"')
    drawn = re.findall(r'class="plot js-plotly-plot" data-plot="(\d+)"', done.stdout)
    assert drawn == [str(number) for number in range(plots)]
    assert len(drawn) == 8
    assert done.stdout.count('class="main-svg"') >= len(drawn)
    assert "<title>inferspan bench: a.json, b.json</title>" in done.stdout
