"""Models to cut: the shipped one, state dicts, Hugging Face ids and folders, functions of the user's own."""

from serverlight.models.digest import weights_digest
from serverlight.models.loaded import ExampleInputs, LoadedModel
from serverlight.models.loader import is_language_model, load_model

__all__ = ["ExampleInputs", "LoadedModel", "is_language_model", "load_model", "weights_digest"]
