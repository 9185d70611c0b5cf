"""The profile's file format: what is written comes back, and nothing else is let in."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlora_planner.catalog.dtypes import DTYPE_BYTES
from qlora_planner.errors import InputError
from qlora_planner.spec.codec import PROFILE_SCHEMA, profile_from_dict, profile_to_dict, profile_to_json
from qlora_planner.spec.fields import ADAPTER, DTYPES, KIND, PROFILE, TENSOR
from qlora_planner.spec.model import ROLES, AdapterTensor, LayerKind, ModelProfile, TensorGroup

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def small_profile() -> ModelProfile:
    """Two kinds of layers, a tied head, DoRA, everything that is left out when it has its usual value and when not."""
    weight = TensorGroup(
        name="model.layers.*.mlp.up_proj.weight", layer_kind="full_attention", count=2, shape=(64, 32),
        dtype="bfloat16", dtype_float16="float16", role="linear", module_class="Linear", quantized=True,
    )  # fmt: skip
    norm = TensorGroup(
        name="model.layers.*.norm.weight", layer_kind="linear_attention", count=1, shape=(32,),
        dtype="bfloat16", dtype_float16="float32", role="norm", module_class="RMSNorm", reason="not_linear",
    )  # fmt: skip
    embedding = TensorGroup(
        name="model.embed_tokens.weight", layer_kind=None, count=1, shape=(100, 32),
        dtype="float32", dtype_float16="float32", role="embedding", module_class="Embedding", reason="not_linear",
    )  # fmt: skip
    head = TensorGroup(
        name="lm_head.weight", layer_kind=None, count=1, shape=(100, 32), dtype="float32", dtype_float16="float32",
        role="output_head", module_class="Linear", reason="tied", tied_with="model.embed_tokens.weight",
    )  # fmt: skip
    rotary = TensorGroup(
        name="model.rotary.inv_freq", layer_kind=None, count=1, shape=(), dtype="float32", dtype_float16="float32",
        role="rotary", module_class="Rotary", buffer=True,
    )  # fmt: skip
    lora = AdapterTensor(
        module="model.layers.*.mlp.up_proj", name="lora_A", layer_kind="full_attention", count=2,
        dims=((0, 1), (32, 0)), dtype="float32",
    )  # fmt: skip
    return ModelProfile(
        id="org/tiny", model_type="llama", class_name="LlamaForCausalLM", config_sha256="ab" * 32, params=7328,
        versions={"torch": "2.13.0"}, dims={"hidden_size": 32, "rope": 0.5, "head_dim": None}, supports={"sdpa": True},
        layer_kinds=(
            LayerKind(name="full_attention", class_name="Layer", count=2),
            LayerKind(name="linear_attention", class_name="Layer", count=1),
        ),
        layer_order=((0, 1), (1, 1), (0, 1)), tensors=(weight, norm, embedding, head, rotary),
        adapters={"all-linear": (lora,), "attention": ()}, refusals={"lora_dropout": "no"}, note="text model",
    )  # fmt: skip


def edited(path: str, value: Any) -> dict[str, Any]:
    """The small profile's JSON with one place changed; `...` takes the place away."""
    raw: Any = json.loads(profile_to_json(small_profile()))
    *parents, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    place = raw
    for part in parents:
        place = place[part]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return raw  # type: ignore[no-any-return]


def fault(raw: object) -> str:
    with pytest.raises(InputError) as caught:
        profile_from_dict(raw, "models/x.json")
    message = str(caught.value)
    assert message.startswith("models/x.json: ")
    assert message.isprintable()
    return message


def test_a_profile_comes_back_as_it_was_written() -> None:
    profile = small_profile()
    assert profile_from_dict(json.loads(profile_to_json(profile)), "x") == profile
    assert profile_from_dict(json.loads(json.dumps(profile_to_dict(profile))), "x") == profile


def test_the_text_is_the_dict() -> None:
    assert json.loads(profile_to_json(small_profile())) == json.loads(json.dumps(profile_to_dict(small_profile())))


def test_a_profile_with_nothing_in_it_comes_back() -> None:
    bare = ModelProfile(
        id="x", model_type="x", class_name="X", config_sha256="0", params=1, versions={}, dims={}, supports={},
        layer_kinds=(), layer_order=(), tensors=(), adapters={},
    )  # fmt: skip
    assert profile_from_dict(json.loads(profile_to_json(bare)), "x") == bare


def test_usual_values_are_left_out() -> None:
    raw = profile_to_dict(small_profile())
    assert set(raw["tensors"][0]) == {
        "name", "layer_kind", "count", "shape", "dtype", "role", "module_class", "quantized",
    }  # fmt: skip
    assert raw["tensors"][1]["dtype_float16"] == "float32"
    assert "dtype_float16" not in raw["tensors"][2]
    assert raw["schema"] == PROFILE_SCHEMA
    assert "source" not in raw


def test_source_says_where_the_copy_came_from() -> None:
    assert profile_from_dict(profile_to_dict_json(), "x", source="cache").source == "cache"


def profile_to_dict_json() -> Any:
    return json.loads(profile_to_json(small_profile()))


def test_the_reader_leaves_its_input_alone() -> None:
    raw = profile_to_dict_json()
    before = copy.deepcopy(raw)
    profile_from_dict(raw, "x")
    assert raw == before


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("schema", "qlora-plan/profile/0", "rebuild it with `qlora-plan profile`"),
        ("schema", ..., "rebuild it"),
        ("id", ..., "lacks id"),
        ("id", "", "id must be a text"),
        ("params", "7", "params must be a whole number from 1, not '7'"),
        ("params", True, "params must be a whole number"),
        ("params", 0, "params must be"),
        ("extra", 1, "has an unknown field 'extra'"),
        ("versions", {"torch": 2}, "versions must map"),
        ("dims/hidden_size", "32", "dims must map names to finite numbers"),
        ("dims/hidden_size", float("inf"), "dims must map names to finite numbers"),
        ("supports/sdpa", 1, "supports must map"),
        ("adapters/attention", None, "adapters must map"),
        ("layer_kinds/0", [], "layer_kinds[0] must be an object"),
        ("layer_kinds/0/name", "linear_attention", "layer_kinds has one name twice"),
        ("layer_kinds/0/count", 3, "layer_order has 2 layers of kind 'full_attention', layer_kinds has 3"),
        ("layer_order/0", [2, 1], "no run of a known layer kind"),
        ("layer_order/0", [0, 0], "no run of a known layer kind"),
        ("layer_order/0", [0], "layer_order must be a list"),
        ("tensors/0", 3, "tensors[0] must be an object, not 3"),
        ("tensors/0/shape", ..., "tensors[0] lacks shape"),
        ("tensors/0/shape", [64, -1], "tensors[0].shape must be"),
        ("tensors/0/shape", [64, 1.0], "tensors[0].shape must be"),
        ("tensors/0/shape", [1 << 50], "tensors[0].shape must be"),
        ("tensors/0/shape", [True], "tensors[0].shape must be"),
        ("tensors/0/dtype", "torch.bfloat16", "tensors[0].dtype must be a torch dtype"),
        ("tensors/0/dtype_float16", "half", "tensors[0].dtype_float16 must be"),
        ("tensors/0/role", "linears", "tensors[0].role must be one of"),
        ("tensors/0/count", 0, "tensors[0].count must be"),
        ("tensors/0/buffer", "no", "tensors[0].buffer must be true or false"),
        ("tensors/0/layer_kind", "mamba", "tensors[0].layer_kind names no layer kind: 'mamba'"),
        ("tensors/0/colour", "red", "tensors[0] has an unknown field 'colour'"),
        ("tensors/3/tied_with", "nobody", "tied with 'nobody', which is not there"),
        ("tensors/3/tied_with", "lm_head.weight", "which is not there"),
        ("adapters/all-linear/0/dims", [[0, 1], [32]], "adapters.all-linear[0].dims must be"),
        ("adapters/all-linear/0/dims/0/0", "0", "adapters.all-linear[0].dims must be"),
        ("adapters/all-linear/0/layer_kind", "mamba", "adapters.all-linear[0].layer_kind names no layer kind"),
        ("adapters/all-linear/0/module", ..., "adapters.all-linear[0] lacks module"),
        ("note", 3, "note must be a text or null"),
    ],
)
def test_every_fault_is_named(path: str, value: Any, says: str) -> None:
    assert says in fault(edited(path, value))


@pytest.mark.parametrize("raw", [None, [], "x", 3, True])
def test_what_is_no_object_is_no_profile(raw: object) -> None:
    assert "must be a JSON object" in fault(raw)


def test_all_faults_are_told_at_once() -> None:
    raw = edited("tensors/0/count", -1)
    raw["tensors"][1]["role"] = 5
    raw["adapters"]["all-linear"][0]["dtype"] = None
    message = fault(raw)
    assert message.count(";") == 2
    assert "tensors[0].count" in message and "tensors[1].role" in message and "all-linear[0].dtype" in message


def test_a_thousand_faults_stay_one_readable_line() -> None:
    raw = profile_to_dict_json()
    raw["tensors"] = [{"name": "a\nb" * 500}] * 1000
    message = fault(raw)
    assert "more" in message
    assert len(message) < 2000


def test_the_path_cannot_break_the_line() -> None:
    with pytest.raises(InputError) as caught:
        profile_from_dict(3, "a\nb\x1b[31m.json")
    assert str(caught.value).isprintable()


dims = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=3).map(tuple)
texts = st.text(min_size=1, max_size=12)
tensor_groups = st.builds(
    TensorGroup, name=texts, layer_kind=st.sampled_from(["a", None]), count=st.integers(1, 99),
    shape=st.lists(st.integers(0, 99), max_size=4).map(tuple), dtype=st.sampled_from(sorted(DTYPES)),
    dtype_float16=st.sampled_from(sorted(DTYPES)), role=st.sampled_from(ROLES), module_class=texts,
    buffer=st.booleans(), quantized=st.booleans(), reason=st.none() | texts, tied_with=st.none(),
)  # fmt: skip
adapter_tensors = st.builds(
    AdapterTensor, module=texts, name=texts, layer_kind=st.sampled_from(["a", None]), count=st.integers(1, 99),
    dims=dims, dtype=st.sampled_from(sorted(DTYPES)),
)  # fmt: skip
profiles = st.builds(
    ModelProfile, id=texts, model_type=texts, class_name=texts, config_sha256=texts, params=st.integers(1, 10**12),
    versions=st.dictionaries(texts, texts, max_size=3),
    dims=st.dictionaries(texts, st.none() | st.integers(0, 10**6) | st.floats(allow_nan=False, allow_infinity=False)),
    supports=st.dictionaries(texts, st.booleans(), max_size=3),
    layer_kinds=st.just((LayerKind(name="a", class_name="A", count=3),)),
    layer_order=st.just(((0, 1), (0, 2))), tensors=st.lists(tensor_groups, max_size=4).map(tuple),
    adapters=st.dictionaries(texts, st.lists(adapter_tensors, max_size=3).map(tuple), max_size=2),
    refusals=st.dictionaries(texts, texts, max_size=2), note=st.none() | texts, source=st.just("built"),
)  # fmt: skip


@settings(deadline=None)
@given(profiles)
def test_any_profile_comes_back(profile: ModelProfile) -> None:
    assert profile_from_dict(json.loads(profile_to_json(profile)), "x") == profile


@settings(deadline=None)
@given(JSON)
def test_any_json_is_refused_in_one_line(raw: object) -> None:
    fault(raw)


def _places(raw: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = raw.items() if isinstance(raw, dict) else enumerate(raw) if isinstance(raw, list) else ()
    return [at, *(place for key, value in inner for place in _places(value, (*at, key)))]


PLACES = [place for place in _places(profile_to_dict_json()) if place]


@settings(deadline=None, max_examples=400)
@given(st.sampled_from(PLACES), JSON | st.just(...))
def test_a_changed_profile_is_refused_or_read(place: tuple[Any, ...], value: Any) -> None:
    raw = profile_to_dict_json()
    parent = raw
    for part in place[:-1]:
        parent = parent[part]
    if value is ...:
        del parent[place[-1]]
    else:
        parent[place[-1]] = value
    try:
        profile = profile_from_dict(raw, "x")
    except InputError as error:
        assert str(error).isprintable()
    else:
        assert profile_from_dict(json.loads(profile_to_json(profile)), "x") == profile


def test_a_dtype_that_is_read_has_a_size() -> None:
    assert set(DTYPE_BYTES) == DTYPES


# What is known of a profile once it is looked up; no file holds it.
FOUND_OUT = {
    "source", "same_shape_as", "same_shape_sha256", "family_sha256", "drawn_dims", "resolved_from", "installed",
    "tied_stored",
}  # fmt: skip


def test_the_checks_cover_every_field() -> None:
    assert set(TENSOR) == set(TensorGroup.__slots__)  # type: ignore[attr-defined]
    assert set(ADAPTER) == set(AdapterTensor.__slots__)  # type: ignore[attr-defined]
    assert set(KIND) == set(LayerKind.__slots__)  # type: ignore[attr-defined]
    assert set(PROFILE) - {"schema"} == set(ModelProfile.__slots__) - FOUND_OUT  # type: ignore[attr-defined]
