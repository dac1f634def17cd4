"""Tokens are drawn from the nucleus with the right frequencies, row by row, and no value is read by the host."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from introspect.sampling import UNFORCED, Drawing, choose, logit_stats, measure


def drawn(logprobs: torch.Tensor, temperature: float | list[float], top_p: float, draws: list[float]) -> list[int]:
    """The tokens of rows that none is forced on."""
    rows = len(logprobs)
    temperatures = temperature if isinstance(temperature, list) else [temperature] * rows
    columns = (torch.tensor(values, dtype=torch.float64) for values in (temperatures, [top_p] * rows, draws))
    return choose(logprobs, torch.full((rows,), UNFORCED), Drawing(*columns)).tolist()


def test_tokens_are_drawn_with_their_probabilities() -> None:
    probabilities = torch.tensor([0.5, 0.05, 0.3, 0.15])
    draws = [(step + 0.5) / 1000 for step in range(1000)]  # an even grid: shares are exact
    rows = probabilities.log().expand(1000, 4)

    def shares(temperature: float, top_p: float) -> np.ndarray:
        return np.bincount(drawn(rows, temperature, top_p, draws), minlength=4) / 1000

    np.testing.assert_allclose(shares(1.0, 1.0), probabilities, atol=1e-3)
    cold = probabilities**2 / (probabilities**2).sum()
    np.testing.assert_allclose(shares(0.5, 1.0), cold, atol=1e-3)
    np.testing.assert_allclose(shares(1.0, 0.8), [0.625, 0, 0.375, 0], atol=1e-3)
    np.testing.assert_allclose(shares(1.0, 0.81), np.array([0.5, 0, 0.3, 0.15]) / 0.95, atol=1e-3)
    np.testing.assert_allclose(shares(1.0, 0.1), [1, 0, 0, 0])


def test_the_last_draw_is_a_token_that_can_be() -> None:
    rows = torch.tensor([[0.0, -1.0, -torch.inf, -torch.inf]]).log_softmax(-1)
    assert drawn(rows, 1.0, 1.0, [float(np.nextafter(1.0, 0.0))]) == [1]


def test_a_rows_token_depends_on_no_other() -> None:
    rows = torch.randn(6, 50, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    draws = np.random.default_rng(0).random(6).tolist()
    temperatures = [0.0, 1.0, 0.7, 0.0, 2.0, 1.3]
    together = drawn(rows, temperatures, 0.9, draws)
    alone = [drawn(rows[i : i + 1], temperatures[i : i + 1], 0.9, draws[i : i + 1])[0] for i in range(6)]
    assert together == alone
    assert [together[i] for i in (0, 3)] == rows[[0, 3]].argmax(-1).tolist()
    assert len(set(alone) - set(rows.argmax(-1).tolist())) > 0


def test_forced_tokens_are_taken_where_they_exist() -> None:
    rows = torch.randn(3, 5, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    tokens = choose(rows, torch.tensor([4, UNFORCED, 5]), None)
    assert tokens.tolist() == [4, *rows[1:].argmax(-1).tolist()]


def test_a_token_that_cannot_be_adds_nothing_to_the_entropy() -> None:
    _, reals = measure(torch.tensor([[0.0, 0.0, -torch.inf]]).log_softmax(-1), torch.tensor([0]))
    assert reals[0, 1] == pytest.approx(np.log(2))


def test_statistics_are_of_the_distribution_and_the_chosen_token() -> None:
    probabilities = torch.tensor([[0.5, 0.125, 0.25, 0.125]])
    ids, reals = measure(probabilities.log(), torch.tensor([2]))
    stats = logit_stats(ids[0].tolist(), reals[0].tolist())
    assert ids[0, 0] == 2
    assert stats.logprob == pytest.approx(np.log(0.25))
    assert stats.entropy == pytest.approx(1.75 * np.log(2))
    assert stats.margin == pytest.approx(np.log(2))
    assert stats.top_ids[:2] == (0, 2)
    assert stats.top_logprobs == pytest.approx(np.log([0.5, 0.25, 0.125, 0.125]))
