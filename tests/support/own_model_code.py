"""Code that comes with published models, in a few lines that do what theirs does."""

from typing import Any

# A class of the same name as transformers' own: without trust, that one would load, causal.
BIDIRECTIONAL_QWEN2 = """
import transformers

class Qwen2Model(transformers.Qwen2Model):
    def __init__(self, config):
        config.is_causal = False
        super().__init__(config)
"""
BIDIRECTIONAL_MISTRAL = BIDIRECTIONAL_QWEN2.replace("Qwen2", "Mistral")
BIDIRECTIONAL_LLAMA = """
from transformers import LlamaConfig, LlamaModel

class LlamaBidirectionalConfig(LlamaConfig):
    model_type = "llama_bidirec"

class LlamaBidirectionalModel(LlamaModel):
    config_class = LlamaBidirectionalConfig

    def __init__(self, config):
        config.is_causal = False
        super().__init__(config)
"""
# pplx-embed also rounds its vectors to int8, in a module of its own behind pooling.
BIDIRECTIONAL_QWEN3 = """
import torch
from sentence_transformers.sentence_transformer.modules import Normalize
from transformers import Qwen3Config, Qwen3Model

class OwnConfig(Qwen3Config):
    model_type = "bidirectional_pplx_qwen3"

class OwnModel(Qwen3Model):
    config_class = OwnConfig

    def __init__(self, config):
        config.is_causal = False
        super().__init__(config)

class Quantizer(Normalize):
    def forward(self, features):
        vectors = features["sentence_embedding"]
        features["sentence_embedding"] = (127 * torch.tanh(vectors)).round()
        return features
"""
# The latents are drawn from a seed: the weights that transformers saved have no place for them.
LATENT_ATTENTION = """
import torch
from transformers import MistralConfig, MistralModel

class NVEmbedConfig(MistralConfig):
    model_type = "nvembed"

class NVEmbedModel(MistralModel):
    config_class = NVEmbedConfig

    def __init__(self, config):
        config.is_causal = False
        super().__init__(config)

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        states = output.last_hidden_state
        generator = torch.Generator().manual_seed(0)
        latents = torch.randn(16, states.shape[-1], generator=generator).to(states)
        output.last_hidden_state = states + (states @ latents.T / 8).softmax(-1) @ latents
        return output
"""
# jina-embeddings-v3 replaces the library's own module.
OWN_MODULE = """
from sentence_transformers.sentence_transformer.modules import Transformer

class OwnTransformer(Transformer):
    def forward(self, features, **kwargs):
        features = super().forward(features, **kwargs)
        features["token_embeddings"] = features["token_embeddings"].flip(-1).cumsum(-1)
        return features
"""


def auto_map(model: str, config: str | None = None) -> dict[str, Any]:
    """Fields of config.json that name a model's own classes."""
    classes = {} if config is None else {"AutoConfig": f"modeling_own.{config}"}
    return {"auto_map": {**classes, "AutoModel": f"modeling_own.{model}"}}
