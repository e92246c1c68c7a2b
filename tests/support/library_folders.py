"""Small folders of sentence-transformers, written by the library itself from random weights."""

import json
import random
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    LayerNorm,
    Normalize,
    Pooling,
    StaticEmbedding,
    Transformer,
    WordWeights,
)

from support.tiny_models import word_piece_tokenizer

# A module of a model's own code, as NV-Embed and jina-embeddings-v3 come with: it reverses vectors,
# or does so for one of its tasks.
OWN_MODULE = """
import torch
from sentence_transformers.base.modules import Module


class Reversed(Module):
    config_keys = []

    def forward(self, features, task="retrieval.passage"):
        if not task.startswith("retrieval."):
            raise ValueError(f"unknown task {task}")
        if task == "retrieval.passage":
            features["sentence_embedding"] = features["sentence_embedding"].flip(-1)
        return features

    def save(self, output_path, *args, **kwargs):
        self.save_config(output_path)
"""


def save_library_model(folder: Path, modules: list[torch.nn.Module], **options) -> Path:
    """Writes the folder of a SentenceTransformer; options are its arguments."""
    SentenceTransformer(modules=modules, device="cpu", **options).save_pretrained(
        str(folder), create_model_card=False
    )
    return folder


def of_transformer(transformer: Path, pooling: str | tuple[str, ...], *more, **options):
    """The modules of a transformer's folder, its pooling, and what comes behind."""
    module = Transformer(str(transformer))
    include_prompt = options.pop("include_prompt", True)
    width = module.get_embedding_dimension()
    return [module, Pooling(width, pooling, include_prompt=include_prompt), *more]


def static_embedding(dims: int = 64) -> StaticEmbedding:
    """As potion and static-retrieval-mrl have."""
    torch.manual_seed(0)
    return StaticEmbedding(word_piece_tokenizer(), embedding_dim=dims)


def word_weights(tokenizer) -> WordWeights:
    """A weight for each of the tokenizer's tokens."""
    words = list(tokenizer.get_vocab())
    drawn = random.Random(0)
    return WordWeights(words, {word: drawn.uniform(0.1, 2.0) for word in words})


def projection_chain() -> list[torch.nn.Module]:
    """64 → 48 with bias and tanh, standardised, → 96 without bias, normalised."""
    torch.manual_seed(0)
    return [
        Dense(64, 48),
        LayerNorm(48),
        Dense(48, 96, bias=False, activation_function=torch.nn.Identity()),
        Normalize(),
    ]


def two_routes(transformer: Path) -> list[torch.nn.Module]:
    """Queries by static embeddings, documents by a transformer."""
    return [
        Router.for_query_document([static_embedding()], list(of_transformer(transformer, "mean")))
    ]


OWN_ARCHITECTURE = """
from transformers import BertConfig, BertModel


class OwnConfig(BertConfig):
    model_type = "own_bert"


class OwnModel(BertModel):
    config_class = OwnConfig
"""


def own_architecture(folder: Path) -> Path:
    """Makes a BERT's folder one of an architecture that only its own code knows."""
    (folder / "modeling_own.py").write_text(OWN_ARCHITECTURE)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    classes = {"AutoConfig": "modeling_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
    path.write_text(json.dumps({**config, "model_type": "own_bert", "auto_map": classes}))
    return folder
