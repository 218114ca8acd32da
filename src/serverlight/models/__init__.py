"""Models to cut: the shipped one, state dicts, Hugging Face ids and folders, functions of the user's own."""

from serverlight.models.digest import weights_digest
from serverlight.models.loaded import ExampleInputs, LoadedModel
from serverlight.models.loader import load_model

__all__ = ["ExampleInputs", "LoadedModel", "load_model", "weights_digest"]
