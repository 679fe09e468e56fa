"""What is used of transformers' models, imported without scipy.

transformers imports scipy's optimizer, where it is installed, for the losses of object detection: 34 MB of memory that
no language model has a use for. Where scipy is missing it goes without, so it is told that it is.
"""

import transformers.utils

transformers.utils.is_scipy_available = lambda: False  # before its models are imported

from transformers import BloomForCausalLM, TextGenerationPipeline  # noqa: E402
from transformers.models.bloom.modeling_bloom import build_alibi_tensor  # noqa: E402

__all__ = ["BloomForCausalLM", "TextGenerationPipeline", "build_alibi_tensor"]
