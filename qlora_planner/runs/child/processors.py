"""The processor of a model that reads images, with images alone: no package for video is needed for it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from qlora_planner.errors import MissingError
from qlora_planner.text import plain

# In whose module of transformers the image processor and the processor are, of types of models that share another's.
_IMAGES_OF = {
    "qwen2_5_vl": "qwen2_vl",
    "qwen3_vl": "qwen2_vl",
    "qwen3_vl_moe": "qwen2_vl",
    "internvl": "got_ocr2",
    "mistral3": "pixtral",
    "paligemma": "siglip",
}
_PROCESSOR_OF = {"qwen3_vl_moe": "qwen3_vl", "mistral3": "pixtral"}
_NO_FILES = (ValueError, OSError, ImportError, KeyError, TypeError, AttributeError)


def load_processor(folder: str, tokenizer: Any, model_type: str) -> Any:
    """transformers' processor for this type of model, from the files in `folder`, around a tokenizer that is loaded.

    Its image processor is the form that needs Pillow alone: the auto classes ask for torchvision, and processors that
    read video too for its packages. Raises MissingError where the folder has no image processor that works, and for
    what else the processor asks for.
    """
    name = plain(folder)
    try:
        images = _image_processor(model_type).from_pretrained(folder, trust_remote_code=False)
    except _NO_FILES as error:
        raise MissingError(f"{name}: has no image processor that works ({_first_line(error)})") from None
    try:
        return _with_images(_processor(model_type), folder, {"tokenizer": tokenizer, "image_processor": images})
    except _NO_FILES as error:
        raise MissingError(f"{name}: its processor cannot be made ({_first_line(error)})") from None


def _with_images(wanted: Any, folder: str, parts: dict[str, Any]) -> Any:
    """The processor of these parts and of the settings in `folder`; its other parts are None."""

    class OfImages(wanted):  # type: ignore[misc]
        """The class where a part may be missing."""

        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            return None if argument is None else super().check_argument_for_proper_class(argument_name, argument)

    # What may be given is read from the signature of the class itself.
    OfImages.__init__ = wanted.__init__  # type: ignore[method-assign]
    fields, _ = wanted.get_processor_dict(folder)
    return OfImages.from_args_and_dict([parts.get(part) for part in wanted.get_attributes()], fields)


def _image_processor(model_type: str) -> Any:
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

    kind = _IMAGES_OF.get(model_type, model_type)
    module = import_module(f"transformers.models.{kind}.image_processing_pil_{kind}")
    return getattr(module, str(IMAGE_PROCESSOR_MAPPING_NAMES[model_type]["pil"]))


def _processor(model_type: str) -> Any:
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    kind = _PROCESSOR_OF.get(model_type, model_type)
    return getattr(
        import_module(f"transformers.models.{kind}.processing_{kind}"), str(PROCESSOR_MAPPING_NAMES[model_type])
    )


def _first_line(error: Exception) -> str:
    return plain((str(error).strip().splitlines() or [type(error).__name__])[0])[:160]
