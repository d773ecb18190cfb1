"""The file of a run: what is saved is read again, and what is no such file is refused with the field's name."""

from __future__ import annotations

import copy
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from inferspan.bench.result_file import FormatError, load, parse, save, schema, to_document
from inferspan.bench.results import (
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

VERSION_1 = Path(__file__).with_name("data") / "version-1.json"
"""As the first release with this format wrote it. Never to be written anew."""


def result() -> Result:
    samples = Samples(
        intended_s=[1.0, 2.0],
        start_s=[1.0, 2.0],
        latency_s=[0.25, 0.5],
        turn=[0, 0],
        time_to_first_token_s=[0.125, None],
        inter_token_s=[[0.01, 0.02], []],
        phases_s={"forward": [0.2, 0.4]},
        input_tokens=[8, 8],
    )
    measured = Configuration(4, 2, 16, "text_completion", "tiny", Warmup(True, [0.3], "steady"), samples, 1.0)
    failed = Configuration(64, failure=Failure("torch.OutOfMemoryError", "no memory", out_of_memory=True))
    target = Target(
        "./tiny", "pipeline", "tiny", "text-generation", {"dtype": "float32", "parameters": 7}, Rest(1.0, 0.5), 2.0
    )
    target.cold = Samples(intended_s=[0.5], start_s=[0.5], latency_s=[0.75], turn=[0])
    target.configurations = [measured, failed]
    return Result(
        "inferspan-bench",
        1,
        "2026-01-02T03:04:05+00:00",
        "0.1.0",
        ["inferspan", "bench", "./tiny"],
        Workload("closed", batch_sizes=[4, 64], input_tokens=[2]),
        Environment({"cpus": 2, "on_battery": False}, [{"name": "H200"}], {"torch": "2.4.0"}, {"torch_threads": 1}),
        [target],
        timeline=Timeline([Stage("measure", 1.0, 2.5, "tiny", 0)], [1.0, 1.5], [100, None]),
        notes=["a note"],
    )


@pytest.mark.parametrize("name", ["run.json", "run.json.gz"])
def test_saved_result_is_read_again(tmp_path: Path, name: str) -> None:
    save(result(), tmp_path / name)

    assert load(tmp_path / name) == result()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_gz_is_gzipped(tmp_path: Path) -> None:
    save(result(), tmp_path / "run.json.gz")

    assert json.loads(gzip.decompress((tmp_path / "run.json.gz").read_bytes())) == to_document(result())


def test_result_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    save(result(), tmp_path / "run.json")
    broken = result()
    broken.duration_s = float("nan")  # no JSON has that

    with pytest.raises(ValueError, match="not JSON compliant"):
        save(broken, tmp_path / "run.json")
    assert load(tmp_path / "run.json") == result()


def test_file_of_version_1_is_read() -> None:
    assert load(VERSION_1) == result()


def test_unknown_field_is_ignored() -> None:
    assert parse({**to_document(result()), "invented_later": 1}) == result()


def test_saved_result_fits_the_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema")

    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(to_document(result()), schema())


def changed(path: str, value: Any) -> dict[str, Any]:
    document = copy.deepcopy(to_document(result()))
    part: Any = document
    *parents, last = [int(step) if step.isdecimal() else step for step in path.split(".")]
    for step in parents:
        part = part[step]
    part[last] = value
    return document


@pytest.mark.parametrize(
    ("document", "said"),
    [
        pytest.param([], 'field "format" is not "inferspan-bench"', id="list"),
        pytest.param({"data": []}, 'field "format" is not "inferspan-bench"', id="foreign"),
        pytest.param(changed("version", "1"), "field \"version\" is '1'", id="version-text"),
        pytest.param(changed("version", 99), 'field "version" is 99, and this Inferspan reads up to 1', id="newer"),
        pytest.param(changed("workload", None), 'field "workload"', id="absent"),
        pytest.param(changed("targets.0.label", 5), 'field "targets[0].label"', id="type"),
        pytest.param(
            changed("targets.0.configurations.0.batch_size", -1),
            'field "targets[0].configurations[0].batch_size"',
            id="below-zero",
        ),
        pytest.param(
            changed("targets.0.configurations.0.samples.latency_s", [0.1, "0.2"]),
            'field "targets[0].configurations[0].samples.latency_s[1]"',
            id="sample",
        ),
        pytest.param(
            changed("targets.0.configurations.0.samples.phases_s.forward", [0.1]),
            'field "targets[0].configurations[0].samples.phases_s.forward" has 1 rows, and latency_s 2',
            id="rows",
        ),
        pytest.param(changed("timeline.resident_bytes", [1]), 'field "timeline.resident_bytes" has 1 rows', id="line"),
    ],
)
def test_damaged_file_is_refused_by_field(document: Any, said: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse(document, "run.json")

    assert str(caught.value).startswith("run.json")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        pytest.param(None, "No such file", id="no-file"),
        pytest.param(b"", "no JSON", id="empty"),
        pytest.param(b'{"format": "infer', "no JSON, or cut off", id="cut"),
        pytest.param(b"\x1f\x8b\x08\x00", "no JSON, or cut off", id="gzip-cut"),
        pytest.param(b"\x89PNG\r\n", "no JSON", id="picture"),
    ],
)
def test_file_that_is_no_json_is_refused(tmp_path: Path, data: bytes | None, said: str) -> None:
    path = tmp_path / "run.json"
    if data is not None:
        path.write_bytes(data)

    with pytest.raises(FormatError, match=said):
        load(path)
