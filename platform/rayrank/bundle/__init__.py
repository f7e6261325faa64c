"""A trained model as a directory that verifies itself: weights, specs, catalogue, tokenizer, golden rows, model card.

Safetensors, JSON and Parquet only, never pickle. ``bundle.json`` is written last and carries the hash of every other
file. Knows files and models; knows nothing about Ray, MLflow or serving.
"""

from rayrank.bundle.info import BundleInfo, Compression, EncoderInfo, Parent, local_folder
from rayrank.bundle.load import Bundle, load_bundle, read_id, read_info
from rayrank.bundle.save import BundleParts, save_bundle

__all__ = [
    "Bundle",
    "BundleInfo",
    "BundleParts",
    "Compression",
    "EncoderInfo",
    "Parent",
    "load_bundle",
    "local_folder",
    "read_id",
    "read_info",
    "save_bundle",
]
