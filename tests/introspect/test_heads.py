"""Visual heads: scores follow from the statistics, boxes from the pixels, and a file of another model is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from families import FAMILIES, TinyModel
from PIL import Image

from introspect.attention import ablated
from introspect.engine import Engine
from introspect.errors import HeadScoresError, RequestError
from introspect.heads.boxes import even, tokens_in_box, view_of
from introspect.heads.cases import Evidence, HeadCase, read_head_cases
from introspect.heads.rendered import rendered_cases
from introspect.heads.scoring import rank_correlation, score_heads
from introspect.heads.visual_heads import VisualHeads, kv_head_scores, read_visual_heads
from introspect.loading import HEADS_FILE, embedded_folder, fingerprint_of, load_model
from introspect.types import Budget, Request, SamplingParams
from introspect_kernels import Segment


def case(seed: int, box: tuple[float, float, float, float] = (32, 0, 64, 32)) -> HeadCase:
    picture = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (96, 96, 3), dtype=np.uint8))
    return HeadCase(f"case-{seed}", picture, "what digit is at row 1 column 2 ?", "blue 7", (Evidence(5, 6, (box,)),))


def test_a_score_is_hit_times_image_mass_over_evidence_tokens(tiny_llava: TinyModel) -> None:
    engine = Engine(tiny_llava.loaded)
    cases = [case(seed) for seed in range(4)]
    tokens = tiny_llava.loaded.tokenizer("blue 7", add_special_tokens=False).input_ids
    expected, hits = np.zeros((5, 8)), np.zeros((5, 8))
    for one in cases:
        request = Request.ask("r", one.question, one.image, sampling=SamplingParams(max_tokens=len(tokens)))
        steps = engine.score([request], [tokens])[0]
        first = int(np.flatnonzero(steps[0].prompt.segments == Segment.IMAGE)[0])
        # 12 by 12 tokens of 8 pixels: rows 0 to 3, columns 4 to 7
        inside = [first + 12 * row + column for row in range(4) for column in range(4, 8)]
        heads = steps[len(tokens) - 1].heads  # the digit is the last token; this query predicts it
        assert heads is not None
        hit = np.isin(heads.image_argmax_position, inside)
        expected += hit * heads.mass[..., Segment.IMAGE] / 16
        hits += hit
    found = score_heads(engine, cases)
    np.testing.assert_array_equal(found.hit_rates, hits / 4)
    assert found.facts["best_hit_rate"] == hits.max() / 4
    np.testing.assert_allclose(found.scores, expected / expected.sum(), rtol=1e-4, atol=1e-7)
    assert found.scores.sum() == pytest.approx(1)
    assert found.facts["tokens"] == 4
    np.testing.assert_array_equal(score_heads(engine, cases).scores, found.scores)


def test_nothing_in_view_is_an_error_not_a_score(tiny_llava: TinyModel) -> None:
    with pytest.raises(HeadScoresError, match="nothing to score heads by: 0 tokens"):
        score_heads(Engine(tiny_llava.loaded), [case(seed, (200, 200, 220, 220)) for seed in range(2)])


def test_heads_of_a_tiled_model_are_scored_by_tiles_and_whole_picture() -> None:
    torch.manual_seed(0)
    loaded = FAMILIES["idefics3"]().loaded
    engine, cases, tokens = Engine(loaded), [], loaded.tokenizer("7", add_special_tokens=False).input_ids
    for seed in range(8):
        picture = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8))
        cases.append(HeadCase(f"case-{seed}", picture, "which digit ?", "7", (Evidence(0, 1, ((34, 2, 46, 30),)),)))
    expected = np.zeros((loaded.num_layers, loaded.num_heads))
    for one in cases:
        steps = engine.score([Request.ask("r", one.question, one.image, sampling=SamplingParams(max_tokens=1))], [tokens])[0]
        image = np.flatnonzero(steps[0].prompt.segments == Segment.IMAGE)
        inside = image[[4, 6, 17]]  # of 2 x 2 tiles of 2 x 2 tokens: the second tile's left side; of the whole picture's 2 x 2: the second
        heads = steps[0].heads
        assert heads is not None
        expected += np.isin(heads.image_argmax_position, inside) * heads.mass[..., Segment.IMAGE] / 3
    found = score_heads(engine, cases)
    np.testing.assert_allclose(found.scores, expected / expected.sum(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("box", "view", "grid", "expected"),
    [
        ((32, 0, 64, 32), (0, 0, 96, 96), (3, 3), [1]),
        ((31.9, 0, 64, 32), (0, 0, 96, 96), (3, 3), [0, 1]),  # a pixel's tenth inside the next token
        ((0, 40, 100, 41), (0, 0, 100, 50), (5, 2), [8, 9]),
        ((0, 0, 20, 20), (20, 0, 80, 60), (3, 3), []),  # cropped away
        ((70, 50, 500, 500), (20, 0, 80, 60), (3, 3), [8]),
    ],
)
def test_a_box_gives_the_tokens_it_touches(box, view, grid, expected) -> None:
    assert tokens_in_box(box, even(view, *grid)).tolist() == expected


class Processor:
    """An image processor's settings."""

    def __init__(self, **settings: object) -> None:
        self.__dict__.update(settings)


def test_what_the_model_sees_of_a_picture() -> None:
    cropping = Processor(do_center_crop=True, size={"shortest_edge": 336}, crop_size={"width": 336, "height": 336})
    assert view_of(cropping, (600, 300)) == pytest.approx((150, 0, 450, 300))
    assert view_of(Processor(do_center_crop=False), (600, 300)) == (0, 0, 600, 300)
    assert view_of(Processor(do_pad=True), (600, 300)) == (0, 0, 600, 300)  # between pictures of one batch
    assert view_of(Processor(do_pad=True, pad_to_square=None), (600, 301)) == (0, -149, 600, 451)
    stretched = Processor(do_center_crop=True, size={"width": 256, "height": 256}, crop_size={"width": 224, "height": 224})
    assert view_of(stretched, (512, 256)) == (32, 16, 480, 240)


def test_cases_of_ones_own(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    line = {"image": "a.png", "text": "total 42", "boxes": [{"text": "42", "box": [1, 2, 9, 8]}, {"span": [0, 5], "box": [0, 0, 5, 5]}]}
    (tmp_path / "cases.jsonl").write_text(json.dumps(line) + "\n\n", encoding="utf-8")
    (only,) = read_head_cases(tmp_path / "cases.jsonl")
    assert (only.image.size, only.answer) == ((30, 20), "total 42")
    assert only.evidence == (Evidence(6, 8, ((1, 2, 9, 8),)), Evidence(0, 5, ((0, 0, 5, 5),)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": "../a.png"}, "line 1: the image ../a.png lies outside"),
        ({"text": "42 42"}, "'42' must occur in the text once"),
        ({"boxes": [{"text": "42", "box": [9, 2, 1, 8]}]}, "a box is left, top, right, bottom"),
        ({"boxes": [{"span": [0, 50], "box": [1, 2, 9, 8]}]}, "a span must lie in the text's 8 characters"),
        ({"boxs": []}, r"unknown keys \['boxs'\]"),
        ({"boxes": [{"text": "42"}]}, "'box' is missing"),
    ],
)
def test_a_broken_case_names_its_line(tmp_path: Path, change: dict[str, object], message: str) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    line = {"image": "a.png", "text": "total 42", "boxes": [{"text": "42", "box": [1, 2, 9, 8]}], **change}
    (tmp_path / "cases.jsonl").write_text(json.dumps(line), encoding="utf-8")
    with pytest.raises(HeadScoresError, match=message):
        list(read_head_cases(tmp_path / "cases.jsonl"))


def test_rendered_words_are_where_their_boxes_say() -> None:
    first, again = next(rendered_cases(1, seed=3)), next(rendered_cases(1, seed=3))
    assert first.answer == again.answer
    assert first.image.tobytes() == again.image.tobytes()
    sizes = set()
    for one in rendered_cases(12, seed=4):
        pixels = np.asarray(one.image.convert("L"), dtype=int)
        paper = np.bincount(pixels.ravel()).argmax()
        outside = np.abs(pixels - paper) > 20
        for piece in one.evidence:
            left, top, right, bottom = (round(v) for v in piece.boxes[0])
            assert outside[top:bottom, left:right].any()
            assert one.answer[piece.start : piece.end].strip()
            outside[max(0, top - 1) : bottom + 1, max(0, left - 1) : right + 1] = False
            sizes.add(bottom - top)
        assert not outside.any()  # no ink that no box claims
        assert " ".join(one.answer[p.start : p.end] for p in one.evidence) == one.answer
    assert max(sizes) > 1.5 * min(sizes)


def test_rank_correlation_against_known_values() -> None:
    assert rank_correlation(np.array([1.0, 2, 3]), np.array([10.0, 20, 15])) == pytest.approx(0.5)
    assert rank_correlation(np.array([1.0, 1, 2]), np.array([1.0, 2, 3])) == pytest.approx(np.sqrt(3) / 2)
    assert np.isnan(rank_correlation(np.zeros(3), np.arange(3.0)))


def test_heads_that_share_a_kv_head_are_summed() -> None:
    heads = VisualHeads(np.array([[0.1, 0.2, 0.3, 0.4]]), "f", {})
    np.testing.assert_allclose(heads.per_kv_head(2), [[0.3, 0.7]])


def with_heads(tiny: TinyModel, path: Path) -> Engine:
    return Engine(replace(tiny.loaded, heads_path=path))


def test_sparsemm_runs_on_a_file_of_scores(tiny_llava: TinyModel, tmp_path: Path) -> None:
    scores = np.zeros((5, 8))
    scores[2, 3], scores[4, 6] = 0.75, 0.25  # KV heads 1 and 3
    path = tmp_path / "heads.json"
    VisualHeads(scores, tiny_llava.loaded.fingerprint, {"tokens": 3}).save(path)
    assert read_visual_heads(path, tiny_llava.loaded).facts == {"tokens": 3}
    prompt = tiny_llava.prompt(1, budget=Budget("sparsemm", entries=31))
    first = next(iter(with_heads(tiny_llava, path).generate_encoded([prompt])))
    assert first.heads is not None
    kept = first.heads.retained.sum(-1)
    assert kept.sum() == 31 * 20
    assert first.prompt.budget.effective == 31
    # The heads that see are full; what they leave is shared by the others alike, to the entry.
    assert kept[2, 1] == kept[4, 3] == prompt.length
    rest = kept[kept < prompt.length]
    assert len(rest) == 18
    assert rest.max() - rest.min() <= 1


def test_scores_of_another_model_are_refused(tiny_llava: TinyModel, tmp_path: Path) -> None:
    path = tmp_path / "heads.json"
    VisualHeads(np.full((5, 8), 1 / 40), "0" * 64, {}).save(path)
    with pytest.raises(HeadScoresError, match=r"measured on the model 000000000000, this one is ffffffffffff.*score-heads"):
        read_visual_heads(path, tiny_llava.loaded)
    with pytest.raises(RequestError, match="measured on the model"):
        kv_head_scores(replace(tiny_llava.loaded, heads_path=path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "else"}, "is of format 'else'"),
        ({"scores": [[1.0] * 7] * 5}, r"got \(5, 7\)"),
        ({"scores": [[-1.0] * 8] * 5}, "scores >= 0"),
    ],
)
def test_a_broken_file_of_scores_is_refused(tiny_llava: TinyModel, tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "heads.json"
    VisualHeads(np.full((5, 8), 1 / 40), tiny_llava.loaded.fingerprint, {}).save(path)
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change), encoding="utf-8")
    with pytest.raises(HeadScoresError, match=message):
        read_visual_heads(path, tiny_llava.loaded)


def test_scores_beside_a_model_are_no_part_of_its_fingerprint(tmp_path: Path) -> None:
    for file in embedded_folder().iterdir():
        if file.name != HEADS_FILE:
            (tmp_path / file.name).symlink_to(file)
    before = fingerprint_of(tmp_path)
    (tmp_path / HEADS_FILE).write_text("{}", encoding="utf-8")
    assert fingerprint_of(tmp_path) == before == fingerprint_of(embedded_folder())
    loaded = load_model(str(tmp_path))
    assert loaded.heads_path == tmp_path / HEADS_FILE
    with pytest.raises(RequestError, match="is of format None"):
        kv_head_scores(loaded)
    with pytest.raises(HeadScoresError, match="cannot read visual-head scores"):
        load_model(str(tmp_path), heads=tmp_path / "none.json")


def test_ablation_is_a_head_without_its_output_weights(tiny_llava: TinyModel) -> None:
    engine = Engine(tiny_llava.loaded)
    silenced = torch.zeros(5, 8, dtype=torch.bool)
    silenced[1, 2] = silenced[3, 7] = True
    prompt = tiny_llava.prompt(3, max_tokens=4)
    with ablated(silenced):
        found = [s.logits.logprob for s in engine.generate_encoded([prompt]) if s.logits is not None]
    layers = tiny_llava.loaded.model.model.language_model.layers
    stored = {layer: layers[layer].self_attn.o_proj.weight.detach().clone() for layer in (1, 3)}
    try:
        with torch.no_grad():
            layers[1].self_attn.o_proj.weight[:, 2 * 32 : 3 * 32] = 0
            layers[3].self_attn.o_proj.weight[:, 7 * 32 : 8 * 32] = 0
        expected = [s.logits.logprob for s in engine.generate_encoded([prompt]) if s.logits is not None]
    finally:
        with torch.no_grad():
            for layer, weight in stored.items():
                layers[layer].self_attn.o_proj.weight.copy_(weight)
    intact = [s.logits.logprob for s in engine.generate_encoded([prompt]) if s.logits is not None]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(np.array(found) - intact).max() > 1e-4
