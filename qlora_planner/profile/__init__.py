"""Profile records: the facts of one model, as counted from its real class."""

from qlora_planner.profile.codec import PROFILE_SCHEMA, profile_from_dict, profile_to_dict
from qlora_planner.profile.records import (
    AdapterTensor,
    LayerKind,
    ModelProfile,
    TensorGroup,
)

__all__ = [
    "PROFILE_SCHEMA",
    "AdapterTensor",
    "LayerKind",
    "ModelProfile",
    "TensorGroup",
    "profile_from_dict",
    "profile_to_dict",
]
