"""Configs that earlier versions saved."""

from __future__ import annotations

import json

from dlrm_jax.saved_config import saved_fields


def test_options_that_a_model_did_not_read_are_left_out():
    options = ["blocks=4", "block_width=8", "mask_ratio=2"]
    saved = json.loads(json.dumps({"model": "masknet", "model_options": options}))
    assert saved_fields(saved)["model_options"] == ["mask_ratio=2"]
    assert saved["model_options"] == options, "what was read stays as it is"
    parallel = [*options, "structure=parallel"]
    assert saved_fields(saved | {"model_options": parallel})["model_options"] == parallel
    other = saved_fields(saved | {"model": "ssr"})
    assert other["model_options"] == options
    assert "model_options" not in saved_fields({"model": "masknet"}), "it isn't made up"
