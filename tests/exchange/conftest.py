"""A real plan's document, made once: the shipped profile and trace of one model on a 24 GB card."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from qlora_planner.session import load_gpu, load_model, plan


@pytest.fixture(scope="session")
def _planned() -> str:
    return json.dumps(plan(load_model("llama-3.1-8b"), load_gpu("24GB")).to_dict())


@pytest.fixture
def document(_planned: str) -> dict[str, Any]:
    """`Plan.to_dict()` of Llama-3.1-8B on 24 GB, free to be changed."""
    found: dict[str, Any] = copy.deepcopy(json.loads(_planned))
    return found
