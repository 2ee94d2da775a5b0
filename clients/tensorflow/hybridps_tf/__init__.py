"""Keras 3 layers on TensorFlow whose rows live in hybridps. Pure Python: no compiled op."""

from hybridps_tf.export import export
from hybridps_tf.layer import Embedding
from hybridps_tf.lookahead import prefetch
from hybridps_tf.stage import InputStage

__all__ = ["Embedding", "InputStage", "export", "prefetch"]
