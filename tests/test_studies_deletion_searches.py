"""searches: variants, scenes, masks as text, searches that are stored image by image."""

from dataclasses import replace

import numpy as np
import pytest
from deletion_smoke import trained

from xai_lib.deletion_region import DeletionConfig
from xai_lib.studies.deletion import searches as se


def test_variants_change_one_thing_each():
    base = DeletionConfig(lambda2=0.1, cell=8, spacing=3)
    found = se.variants(base)
    assert next(iter(found)) == se.SDR and found[se.SDR] == base
    assert "lambda2 0.1" not in found and "grid 8" not in found  # these are SDR itself
    assert (found["no shape terms"].lambda2, found["no shape terms"].lambda3) == (0.0, 0.0)
    assert (found["grid pixel"].cell, found["grid pixel"].spacing) == (1, 24)
    assert (found["grid 16"].cell, found["grid 16"].spacing) == (16, 2)
    assert found["start 1"].offset != found["start 2"].offset != base.offset
    assert found["printed"] == replace(base, signs="printed") and found["soft"].relaxation == "soft"
    assert len(set(found.values())) == len(found)


@pytest.mark.parametrize("shape", [(3, 5), (16, 8), (320, 160)])
def test_a_mask_survives_as_text(shape):
    hole = np.random.default_rng(0).random(shape) < 0.3
    assert (se.unpack(se.pack(hole), shape) == hole).all()
    assert not se.unpack(se.pack(np.zeros(shape, bool)), shape).any()


def test_scenes_take_every_patient_once_before_any_twice():
    ready, _ = trained()
    chosen = se.chosen(ready, "train", 1)
    patients = ready.sets.cases.patient_ids[chosen]
    first = len(set(patients))
    assert len(set(patients[:first])) == first
    assert (ready.sets.cases.labels[chosen] == 1).all() and set(chosen) <= set(ready.sets.parts["train"])


def test_a_part_without_a_mass():
    ready, _ = trained()
    healthy = se.chosen(ready, "test", 0)
    part = replace(ready, sets=replace(ready.sets, parts={"test": healthy}))
    with pytest.raises(ValueError, match=rf"test: none of {len(healthy)} images has a mass"):
        se.with_mass(part)


def test_a_scene_knows_twin_breast_and_annotation():
    ready, _ = trained()
    scene = se.with_mass(ready, "train", 1)[0]
    assert scene.truth.any() and (scene.breast[scene.truth]).mean() > 0.9
    outside = ~scene.breast
    assert (scene.twin[0].numpy()[outside] == 0).all()
    assert scene.facts["pixel_mm"] == pytest.approx(200 / ready.study.size[0])


def test_searches_cover_the_variants_and_are_stored(monkeypatch, tmp_path):
    monkeypatch.setenv("XAI_CACHE_DIR", str(tmp_path))
    ready, _ = trained()
    found = se.holes(ready, progress=False)
    names = [*se.variants(ready.study.region), "untrained", *se.PERTURBATIONS]
    assert list(dict.fromkeys(found["variant"])) == names
    counts = found.groupby("variant").size()
    assert counts[se.SDR] == len(se.with_mass(ready, count=ready.study.tested))
    assert counts["untrained"] == ready.study.searched and counts["meaningful"] == ready.study.perturbed
    assert not found["skipped"].any() and (found["score"] > 0).all()

    def never(*_: object, **__: object) -> None:
        raise AssertionError("searched again")

    for name in ("smallest_deletion_region", "rise", "meaningful_perturbation", "extremal_perturbation"):
        monkeypatch.setattr(se, name, never)
    assert se.holes(ready, progress=False).equals(found)


def test_nothing_is_left_to_inpaint_from():
    ready, _ = trained()
    scene = se.with_mass(ready, "train", 1)[0]
    assert np.isnan(se.score_after(ready, scene, np.ones_like(scene.breast)))
    nothing = se.score_after(ready, scene, np.zeros_like(scene.breast))
    assert nothing == pytest.approx(se.score(ready.classifier, scene.case.image[None])[0])


def test_the_untrained_network_calls_every_image_a_mass():
    ready, _ = trained()
    scenes = se.with_mass(ready, "train", 3)
    model = se._untrained(ready, scenes)
    assert min(se.score(model, scene.case.image[None])[0] for scene in scenes) == pytest.approx(1.0, abs=1e-4)
