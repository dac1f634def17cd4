"""The study of what only the kernel knows: on rows where the answer is known, and once through the engine."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from introspect_probes.errors import ProbesError
from introspect_probes.metrics import weighted_auroc
from introspect_probes.studies import kernel_only as study
from introspect_probes.studies import recording
from introspect_probes.studies.arms import ARMS, cases_of
from introspect_probes.studies.contrast import Contrast, permuted_within, random_effects
from introspect_probes.studies.nested import choose, scores, standardised
from introspect_probes.studies.rows import CANDIDATES, Rows, answer_rows, columns
from introspect_probes.studies.tables import kernel_only_table
from introspect_probes.studies.training_runs import model_of, training_facts

SETS = {"normalised": np.arange(0, 6), "lse": np.arange(6, 9), "retention": np.arange(9, 11), "retained": np.arange(11, 13)}


def made(n, seed, lse=1.5):
    """Rows whose truth rests on something that the logits show and, with weight `lse`, something that only column 6 does."""
    rng = np.random.default_rng(seed)
    seen, unseen = rng.normal(size=n), rng.normal(size=n)
    statistics = rng.normal(size=(n, 13))
    statistics[:, 6] = unseen
    correct = rng.random(n) < 1 / (1 + np.exp(-(1.2 * seen + lse * unseen)))
    return Rows(
        logits=np.stack([seen + 0.3 * rng.normal(size=n), rng.normal(size=n)], 1).astype(np.float32),
        hidden=np.concatenate([seen[:, None] + 0.3 * rng.normal(size=(n, 4)), rng.normal(size=(n, 8))], 1).astype(np.float32),
        statistics=statistics.astype(np.float32),
        correct=correct.astype(np.int8),
        word=rng.integers(0, 3, n).astype(np.int8),
        group=np.array([f"digit-{i}" for i in rng.integers(0, n // 4, n)]),
        kept=np.full(n, 0.25, dtype=np.float32),
    )


@pytest.fixture(scope="module")
def telling():
    return study.compare(made(700, 0), made(700, 1), SETS)


def test_what_the_kernel_alone_knows_is_found(telling):
    for name in ("lse", "all"):
        value, low, _ = telling["delta"][name]["difference"]
        assert value > 0.06
        assert low > 0.03
        assert telling["delta_network"][name]["difference"][0] > 0.05
        assert telling["within_deciles"][name]["difference"][1] > 0
        assert telling["delta"][name]["standard_error"] < 0.03
    assert abs(telling["delta"]["normalised"]["difference"][0]) < 0.02
    assert telling["better"] in ("L", "L+H")
    assert telling["auroc"]["L+H"][0] > telling["auroc"]["L"][0] - 0.01


def test_what_is_permuted_within_the_word_adds_nothing(telling):
    for name in study.NETWORK_SETS:
        assert telling["permuted"][name]["times"] == study.PERMUTATIONS
        assert telling["permuted"][name]["largest"] < 0.02 < telling["delta"][name]["difference"][0]


def test_where_the_kernel_knows_nothing_more_no_gain_is_found():
    result = study.compare(made(700, 2, lse=0.0), made(700, 3, lse=0.0), SETS)
    for name in study.SETS:
        value, low, _ = result["delta"][name]["difference"]
        assert abs(value) < 0.02
        assert low <= 0


def test_statistics_that_never_vary_change_nothing():
    known, fresh = (replace(rows, statistics=np.ones_like(rows.statistics)) for rows in (made(300, 4), made(300, 5)))
    result = study.compare(known, fresh, SETS)
    assert result["better"] == "L+H"
    assert result["delta"]["retention"]["difference"] == [0, 0, 0]
    assert result["permuted"]["lse"] == {"times": 0}


def test_an_added_block_of_noise_is_left_out_and_a_good_one_is_not():
    rows = made(700, 6)
    rng = np.random.default_rng(0)
    base, good = standardised(rows.logits)[0], standardised(rows.statistics[:, SETS["lse"]])[0]
    noise = rng.normal(size=(700, 200))
    first = choose([base], rows.correct, rows.group)
    assert choose([base, good], rows.correct, rows.group, first).factors[1] > 0
    assert choose([base, noise], rows.correct, rows.group, first).factors == (1.0, 0.0)
    alone = scores(first, [base], rows.correct, [base])
    left_out = replace(first, factors=(1.0, 0.0))
    np.testing.assert_allclose(scores(left_out, [base, noise], rows.correct, [base, noise]), alone)


def test_differences_are_paired_and_of_the_same_rows():
    rows = made(600, 7)
    strong, weak = rows.statistics[:, 6], rows.statistics[:, 0]
    contrast = Contrast({"strong": strong, "same": strong, "weak": weak}, rows.correct, rows.group, deciles_of="weak")
    ones = np.ones(len(rows))
    expected = weighted_auroc(strong, rows.correct, ones) - weighted_auroc(weak, rows.correct, ones)
    assert contrast.delta("strong", "weak")["difference"][0] == pytest.approx(expected, abs=1e-4)
    assert contrast.delta("same", "strong") == {"difference": [0, 0, 0], "standard_error": 0}
    assert contrast.deciles == 10
    # within its own deciles a score hardly ranks; another one keeps its worth
    assert contrast.delta_within("strong", "weak")["difference"][0] == pytest.approx(expected, abs=0.06)


def test_permutation_exchanges_only_within_a_cell():
    cells = np.repeat([3, 1, 2], 50)
    order = permuted_within(np.random.default_rng(0), cells)
    assert sorted(order) == list(range(150))
    assert (cells[order] == cells).all()
    assert (order != np.arange(150)).mean() > 0.9


def test_random_effects_against_figures_worked_out_by_hand():
    t_of_one, t_of_three = 12.7062, 3.18245  # 97.5th percentiles of Student's t
    same = random_effects([0.03, 0.03], [0.01, 0.01])
    assert same["between"] == 0
    assert same["high"] - same["mean"] == pytest.approx(t_of_one * 0.01 / np.sqrt(2), rel=1e-4)
    # two equal weights w: w (0.02² + 0.02²) = 1, so the whole variance is 8e-4, of which 1e-4 is the seeds' own
    apart = random_effects([0.01, 0.05], [0.01, 0.01])
    assert apart["between"] ** 2 == pytest.approx(7e-4)
    assert apart["mean"] == pytest.approx(0.03)
    assert apart["high"] - apart["mean"] == pytest.approx(t_of_one * np.sqrt(8e-4 / 2), rel=1e-4)
    # seeds that know their value exactly weigh as much as the variance between seeds lets them, and no more
    exact = random_effects([0.04, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0])
    assert exact["mean"] == pytest.approx(0.01)
    assert exact["between"] == pytest.approx(0.02)
    assert exact["high"] - exact["mean"] == pytest.approx(t_of_three * 0.01, rel=1e-4)
    nothing = random_effects([0.0, 0.0], [0.0, 0.0])
    assert nothing["between"] == 0
    assert [nothing[k] for k in ("mean", "low", "high")] == pytest.approx([0, 0, 0], abs=1e-4)
    with pytest.raises(ValueError, match="two seeds or more"):
        random_effects([0.03], [0.01])


def test_noise_is_matched_to_the_other_arms_accuracy(monkeypatch):
    def accuracy(engine, arm, pool, n, folder, *, seed, noise=None):
        del engine, arm, pool, folder, seed
        rows = made(n, 0)
        share = 0.6 if noise is None else 1 - noise / 2
        return replace(rows, correct=(np.arange(n) < round(share * n)).astype(np.int8))

    monkeypatch.setattr(recording, "record_rows", accuracy)
    assert recording.matched_noise(None, ARMS["noise-random-75"], None, seed=0) == 0.8
    assert recording.matched_noise(None, ARMS["random-75"], None, seed=0) is None


def test_rows_of_the_engine(engine):
    cases = list(cases_of("test", 12, seed=3))
    rows = answer_rows(engine, ARMS["random-75"], cases)
    again = answer_rows(engine, ARMS["random-75"], cases[6:], first=6)
    np.testing.assert_allclose(rows.statistics[6:], again.statistics, atol=1e-4)  # a case's draw is its own, whoever is beside it
    np.testing.assert_allclose(rows.hidden[6:], again.hidden, atol=2e-2)
    other = answer_rows(engine, ARMS["random-75"], cases[6:], first=0)
    assert np.abs(rows.statistics[6:] - other.statistics).max() > 0.01  # another number, another draw
    sets = columns(engine.loaded)
    assert sorted(np.concatenate(list(sets.values()))) == list(range(rows.statistics.shape[1]))
    assert len(sets["lse"]) == 40
    assert (rows.statistics[:, sets["retained"]] <= 1).all()
    assert (rows.kept <= 0.25).all()
    said = [CANDIDATES[w] for w in rows.word]
    assert [word == case.answers[0] for word, case in zip(said, cases, strict=True)] == rows.correct.astype(bool).tolist()
    full = answer_rows(engine, ARMS["noise-random-75"], cases)
    assert (full.kept == 1).all()
    assert (full.statistics[:, sets["retention"]] == 1).all()


def test_the_study_resumes_and_files_every_step(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "load_model", lambda _: engine.loaded)
    given = {"arms": ["random-90"], "test": 60, "fit": 80, "work": tmp_path / "work"}
    (result,) = study.kernel_only(tmp_path / "out", **given)
    path = tmp_path / "out" / "embedded-random-90.json"
    assert json.loads(path.read_text()) == result
    assert result["cases"]["test"]["answers"] == 60
    assert result["kept"] < 0.1
    assert set(result["delta"]) == set(study.SETS)
    monkeypatch.setattr(study, "run_arm", None)  # what is done is not run again
    assert study.kernel_only(tmp_path / "out", **given) == [result]
    monkeypatch.setattr(recording, "answer_rows", None)  # nor is a recorded chunk
    rows = recording.record_rows(engine, ARMS["random-90"], "test", 60, tmp_path / "work" / "embedded", seed=study.SEED)
    assert len(rows) == 60
    with pytest.raises(ProbesError, match="unknown arm"):
        study.kernel_only(tmp_path / "out", arms=["all-of-it"])


def test_the_table_says_what_was_met_and_what_was_missed(telling):
    def result(arm, noise, delta, model="one"):
        facts = {"test": {"answers": 700, "right": 0.5}}
        own = {s: {"difference": [delta, delta - 0.01, delta + 0.01], "standard_error": 0.005} for s in study.SETS}
        model = {"name": model, "fingerprint": model}
        return telling | {"arm": arm, "noise": noise, "kept": 0.25, "cases": facts, "model": model, "delta": own}

    given = [result("random-75", None, 0.05), result("random-50", None, 0.015), result("noise", 0.3, -0.02)]
    text = kernel_only_table(given)
    assert "above zero: random-75 (normalised statistics +0.050)." in text
    assert "Not: random-50 (normalised statistics +0.015)." in text
    assert "Control noise: the largest difference of any set is -0.020 (normalised statistics), not within 0.01." in text
    assert "One model seed" in text
    seeds = [result(arm, noise, 0.01 * i, f"small-{i}") for i in range(1, 6) for arm, noise in (("random-75", None), ("noise", 0.3))]
    text = kernel_only_table([*given, *seeds])
    assert "5 seeds of the model `small`" in text
    assert "| random-75 | 5 | 50.0% |" in text
    assert "| +0.030 [" in text
    # gains of .01 to .05 with intervals .01 to either side: four are at least .02, and above zero
    assert "| random-75 | 4 of 5 | 4 of 5 | 4 of 5 | 4 of 5 | met by normalised statistics, lse, retention, all of them |" in text
    assert "| noise | 0 of 5 |" in text
    assert text.count("One model seed") == 1


def test_a_training_runs_folder_stands_for_its_model_and_its_record(tmp_path):
    assert model_of("embedded") == "embedded"
    assert training_facts(tmp_path) == {}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    assert model_of(str(tmp_path)) == str(tmp_path / "model")
    accuracy = {"digit_at": {"accuracy": 0.9, "count": 10}, "describe": {"accuracy": 0.0, "count": 10}}
    plan = {"size": "study", "seed": 3, "mix": {"weights": {"digit_at": 1.0}}}
    record = {"plan": plan, "parameters": 5, "seconds": 7, "accuracy": {"test": accuracy}}
    (tmp_path / "model" / "training_record.json").write_text(json.dumps(record))
    found = training_facts(tmp_path)
    assert found == {"size": "study", "seed": 3, "parameters": 5, "seconds": 7, "accuracy": {"digit_at": 0.9}}
