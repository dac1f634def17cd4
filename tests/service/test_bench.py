"""The benchmarks' command: what it prints last, what it writes, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from introspect_service import bench
from introspect_service.cli import app


def test_the_last_line_is_the_row_that_was_written(tmp_path: Path) -> None:
    out = tmp_path / "row.json"
    done = CliRunner().invoke(app, ["bench", "kernels", "--quick", "--out", str(out)])
    assert done.exit_code == 0, done.output
    row = json.loads(done.output.splitlines()[-1])
    assert row == json.loads(out.read_text(encoding="utf-8"))
    assert row["benchmark"] == "kernels cpu"
    assert row["provenance"]["machine"]["threads"] == torch.get_num_threads()
    assert {case["model"] for case in row["cases"]} == {"embedded", "Qwen2.5-VL-7B"}
    assert all(case["overhead_on_over_off"] > 0 for case in row["cases"])


def test_an_unknown_device_is_refused() -> None:
    done = CliRunner().invoke(app, ["bench", "kernels", "--device", "abacus"])
    assert done.exit_code == 1
    assert "--device must be cpu or cuda, got 'abacus'" in done.output


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_a_gpu_that_is_not_there_is_missed_in_plain_words() -> None:
    done = CliRunner().invoke(app, ["bench", "kernels", "--device", "cuda"])
    assert done.exit_code == 1
    assert "needs a CUDA device" in done.output


def test_a_full_run_in_a_checkout_goes_to_its_results_and_a_quick_one_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "service" / "introspect_service" / "bench.py"))
    row = {"benchmark": "kernels cpu", "provenance": {"date": "2026-11-21T16:05:09+00:00"}, "cases": []}
    bench.finish(row, None, "kernels", quick=True)
    assert list(tmp_path.rglob("*.json")) == []
    bench.finish(row, None, "kernels", quick=False)
    path = tmp_path / "kernels" / "benchmarks" / "results" / "kernels-cpu-20261121T1605.json"
    assert json.loads(path.read_text(encoding="utf-8")) == row
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == row
