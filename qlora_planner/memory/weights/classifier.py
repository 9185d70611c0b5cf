"""The profile of a sequence classifier, worked out from that of the causal language model with the same backbone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from qlora_planner.catalog.classifiers import CLASSIFIERS, SCORE, labels_of
from qlora_planner.errors import InputError
from qlora_planner.spec.model import ModelProfile, TensorGroup
from qlora_planner.spec.run import RunConfig

HEAD = "output_head"
LABELS = "num_labels"  # among the dimensions of a classifier's profile


def profile_for(profile: ModelProfile, run: RunConfig) -> ModelProfile:
    """The profile of the class that `run` trains: the model's own, or its classifier with the run's labels.

    A classifier's profile comes back as it is. Raises InputError for a model of which transformers has no classifier.
    """
    labels = labels_of(run)
    return profile if labels is None else classifier_profile(profile, labels)


def classifier_profile(profile: ModelProfile, labels: int) -> ModelProfile:
    """What `AutoModelForSequenceClassification` with `labels` labels makes of this model's config.

    The output head, tied or not, gives way to a linear layer `score` without bias, as wide as the head was and as many
    rows as labels, which transformers loads in 16 bits (it is the class's last module) and PEFT puts no adapters on.
    Raises InputError where transformers has no such class, or the profile no head.
    """
    if labels == profile.dims.get(LABELS):
        return profile
    class_name = CLASSIFIERS.get(profile.model_type)
    if class_name is None:
        raise InputError(
            f"{profile.id}: transformers has no sequence classifier of a {profile.model_type} model; --task"
            " classification and reward models need one, as Llama, Qwen2, Qwen3, Mistral, Gemma and Phi-3 have"
        )
    dims = {**profile.dims, LABELS: labels}
    if not profile.tensors:  # facts of a class alone
        return replace(profile, class_name=class_name, dims=dims)
    heads = [group for group in profile.tensors if group.role == HEAD and not group.buffer]
    matrix = next((group for group in heads if len(group.shape) == 2), None)
    if matrix is None:
        raise InputError(f"{profile.id}: its profile has no output head that a classifier's could take the place of")
    score = TensorGroup(
        name=f"{SCORE}.weight", layer_kind=None, count=1, shape=(labels, matrix.shape[1]), dtype="bfloat16",
        dtype_float16="float16", role=HEAD, module_class="Linear", reason="protected",
    )  # fmt: skip
    modules = {group.name.rpartition(".")[0] for group in heads}
    tensors = tuple(_with_score(profile, score))
    return replace(
        profile,
        class_name=class_name,
        params=sum(group.total_numel for group in tensors if not group.buffer),
        dims=dims,
        tensors=tensors,
        adapters={
            target: tuple(adapter for adapter in added if adapter.target not in modules)
            for target, added in profile.adapters.items()
        },
    )


def _with_score(profile: ModelProfile, score: TensorGroup) -> Iterator[TensorGroup]:
    """Parameters without the head and with `score` behind the last, then buffers."""
    kept = [group for group in profile.tensors if group.role != HEAD]
    yield from (group for group in kept if not group.buffer)
    yield score
    yield from (group for group in kept if group.buffer)
