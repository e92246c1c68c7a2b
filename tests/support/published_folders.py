"""Folders of published embedders, made small: random weights, and everything else as published.

Each has the shape of the real config (head sizes, windows, tied embeddings, kinds of layers), what
its tokenizer puts around a text, the modules behind the transformer, prompts, similarity and
length. sentence-transformers itself writes them.
"""

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Normalize,
    Pooling,
    StaticEmbedding,
    Transformer,
)
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from support import tiny_models
from support.own_model_code import (
    BIDIRECTIONAL_LLAMA,
    BIDIRECTIONAL_MISTRAL,
    BIDIRECTIONAL_QWEN2,
    BIDIRECTIONAL_QWEN3,
    LATENT_ATTENTION,
    OWN_MODULE,
    auto_map,
)
from support.published_shapes import (
    HIDDEN,
    bert,
    distilbert,
    embedding_gemma,
    gemma2,
    gemma_tokenizer,
    llama,
    llama_tokenizer,
    mistral,
    mistral_tokenizer,
    modern_bert,
    modern_bert_tokenizer,
    mpnet,
    nomic_bert,
    qwen2,
    qwen3,
    qwen_tokenizer,
    t5,
    t5_tokenizer,
    xlm_roberta,
)

MAX_TOKENS = 96

WEB_SEARCH = "Given a web search query, retrieve relevant passages that answer the query"


@dataclass(frozen=True)
class PublishedModel:
    """What is known of a model, small.

    Attributes:
        tokenizer: with its template; `tokenizer_options` go into tokenizer_config.json.
        pooling: by the library's name; None: modules alone, without a transformer.
        after: the modules behind pooling.
        prompts: by their names; those of roles are "query" and "document".
        own_code: a module of Python that comes with the model; its classes are named by
            `config_changes` and, in the place of the library's modules, by `own_modules`.
        either_side: positions do not count padding, so that a batch may be padded on the left.
    """

    transformer: Callable[[], Any] | None
    tokenizer: Callable[[], PreTrainedTokenizerFast]
    pooling: str | None = "mean"
    after: Callable[[], list[Any]] = lambda: [Normalize()]
    prompts: dict[str, str] = field(default_factory=dict)
    include_prompt: bool = True
    similarity: str | None = "cosine"
    tokenizer_options: dict[str, Any] = field(default_factory=dict)
    own_code: str | None = None
    config_changes: dict[str, Any] = field(default_factory=dict)
    own_modules: dict[int, str] = field(default_factory=dict)
    either_side: bool = True


def write_published_folder(model: PublishedModel, folder: Path) -> Path:
    """Writes the model as sentence-transformers does today."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(0)
    modules = [StaticEmbedding(model.tokenizer(), embedding_dim=HIDDEN)]
    if model.transformer is not None:
        plain = folder.with_name(f"{folder.name}-transformer")
        randomised(model.transformer()).save_pretrained(plain)
        model.tokenizer().save_pretrained(plain)
        pooling = Pooling(HIDDEN, model.pooling, include_prompt=model.include_prompt)
        modules = [Transformer(str(plain), max_seq_length=MAX_TOKENS), pooling, *model.after()]
        shutil.rmtree(plain)
    SentenceTransformer(
        modules=modules, prompts=model.prompts, similarity_fn_name=model.similarity, device="cpu"
    ).save(str(folder), create_model_card=False)
    change_json(folder / "tokenizer_config.json", model.tokenizer_options)
    change_json(folder / "config.json", model.config_changes)
    if model.own_code is not None:
        (folder / "modeling_own.py").write_text(model.own_code)
    listed = json.loads((folder / "modules.json").read_text())
    for number, name in model.own_modules.items():
        listed[number]["type"] = f"modeling_own.{name}"
    (folder / "modules.json").write_text(json.dumps(listed))
    return folder


def as_an_older_library_writes(folder: Path) -> Path:
    """Rewrites a folder's descriptions as releases before 6 wrote them."""
    modules = json.loads((folder / "modules.json").read_text())
    for module in modules:
        kind = module["type"].rpartition(".")[2]
        module["type"] = f"sentence_transformers.models.{kind}"
        path = folder / module["path"] / "config.json"
        if kind == "Pooling":
            new = json.loads(path.read_text())
            flags = {f"pooling_mode_{flag}": False for flag in FLAGS.values()}
            flags[f"pooling_mode_{FLAGS[new['pooling_mode']]}"] = True
            old = {"word_embedding_dimension": new["embedding_dimension"], **flags}
            path.write_text(json.dumps({**old, "include_prompt": new["include_prompt"]}))
        elif kind == "Dense":
            new = json.loads(path.read_text())
            kept = ("in_features", "out_features", "bias", "activation_function")
            path.write_text(json.dumps({name: new[name] for name in kept}))
        elif kind == "Normalize":
            shutil.rmtree(folder / module["path"])
    (folder / "modules.json").write_text(json.dumps(modules))
    options = {"max_seq_length": MAX_TOKENS, "do_lower_case": False}
    (folder / "sentence_bert_config.json").write_text(json.dumps(options))
    path = folder / "config_sentence_transformers.json"
    content = json.loads(path.read_text())
    content.pop("model_type")
    versions = {"sentence_transformers": "3.0.1", "transformers": "4.41.2", "pytorch": "2.3.0"}
    path.write_text(json.dumps({**content, "__version__": versions}))
    return folder


FLAGS = {"cls": "cls_token", "mean": "mean_tokens", "lasttoken": "lasttoken", "max": "max_tokens"}


def change_json(path: Path, changes: dict[str, Any]) -> None:
    """Changes fields of a JSON file."""
    if changes:
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def randomised(model: Any) -> Any:
    """The model with weights so large that each attention, bias and position matters."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.12)
            else:
                parameter += 0.1 * torch.randn_like(parameter)
    return model


def dense(*sizes: int, bias: bool = False, activation: Any = None) -> list[Dense]:
    """Dense modules from the first size to the last."""
    activation = activation or torch.nn.Identity()
    pairs = itertools.pairwise(sizes)
    return [Dense(n, m, bias=bias, activation_function=activation) for n, m in pairs]


def instruct(template: str = "Instruct: {}\nQuery:") -> dict[str, str]:
    """Prompts of a model that wants an instruction before queries alone."""
    return {"query": template.format(WEB_SEARCH), "document": ""}


E5 = {"query": "query: ", "passage": "passage: "}

PUBLISHED: dict[str, PublishedModel] = {
    "Qwen/Qwen3-Embedding-0.6B": PublishedModel(
        qwen3, qwen_tokenizer, "lasttoken", prompts=instruct()
    ),
    "intfloat/e5-mistral-7b-instruct": PublishedModel(
        mistral, mistral_tokenizer, "lasttoken",
        prompts={
            "web_search_query": f"Instruct: {WEB_SEARCH}\nQuery: ",
            "sts_query": "Instruct: Retrieve semantically similar text\nQuery: ",
        },
        tokenizer_options={"add_bos_token": True, "add_eos_token": True},
    ),
    "google/embeddinggemma-300m": PublishedModel(
        embedding_gemma, gemma_tokenizer,
        after=lambda: [*dense(HIDDEN, 4 * HIDDEN, HIDDEN), Normalize()],
        prompts={"query": "task: search result | query: ", "document": "title: none | text: "},
    ),
    "BAAI/bge-multilingual-gemma2": PublishedModel(
        gemma2, gemma_tokenizer, "lasttoken",
        prompts={"query": f"<instruct>{WEB_SEARCH}\n<query>", "document": ""},
    ),
    "nomic-ai/nomic-embed-text-v1.5": PublishedModel(
        nomic_bert, tiny_models.word_piece_tokenizer,
        prompts={"query": "search_query: ", "document": "search_document: "},
    ),
    "BAAI/bge-m3": PublishedModel(xlm_roberta, tiny_models.unigram_tokenizer, "cls"),
    "Snowflake/snowflake-arctic-embed-l-v2.0": PublishedModel(
        xlm_roberta, tiny_models.unigram_tokenizer, "cls", prompts={"query": "query: "}
    ),
    "BAAI/bge-large-en-v1.5": PublishedModel(
        bert, tiny_models.word_piece_tokenizer, "cls", either_side=False,
        prompts={"query": "Represent this sentence for searching relevant passages: "},
    ),
    "mixedbread-ai/mxbai-embed-large-v1": PublishedModel(
        bert, tiny_models.word_piece_tokenizer, "cls", lambda: [], either_side=False,
        prompts={
            "query": "Represent this sentence for searching relevant passages: ", "passage": "",
        },
    ),
    "intfloat/multilingual-e5-large": PublishedModel(
        xlm_roberta, tiny_models.unigram_tokenizer, prompts=E5
    ),
    "intfloat/multilingual-e5-large-instruct": PublishedModel(
        xlm_roberta, tiny_models.unigram_tokenizer, prompts=instruct("Instruct: {}\nQuery: ")
    ),
    "ibm-granite/granite-embedding-english-r2": PublishedModel(
        modern_bert, modern_bert_tokenizer, "cls"
    ),
    "sentence-transformers/multi-qa-mpnet-base-dot-v1": PublishedModel(
        mpnet, tiny_models.roberta_tokenizer, "cls", lambda: [], similarity="dot"
    ),
    "facebook/contriever-msmarco": PublishedModel(
        bert, tiny_models.word_piece_tokenizer, "mean", lambda: [], similarity="dot",
        either_side=False,
    ),
    "sentence-transformers/msmarco-distilbert-base-tas-b": PublishedModel(
        distilbert, tiny_models.word_piece_tokenizer, "cls", lambda: [], similarity="dot",
        either_side=False,
    ),
    "sentence-transformers/distiluse-base-multilingual-cased-v2": PublishedModel(
        distilbert, tiny_models.word_piece_tokenizer, either_side=False,
        after=lambda: dense(HIDDEN, 48, bias=True, activation=torch.nn.Tanh()),
    ),
    "sentence-transformers/all-MiniLM-L6-v2": PublishedModel(
        bert, tiny_models.word_piece_tokenizer, either_side=False
    ),
    "sentence-transformers/all-mpnet-base-v2": PublishedModel(
        mpnet, tiny_models.roberta_tokenizer
    ),
    "sentence-transformers/gtr-t5-base": PublishedModel(
        t5, t5_tokenizer, after=lambda: [*dense(HIDDEN, 48), Normalize()]
    ),
}  # fmt: skip

# Models with code of their own, which sentence-transformers runs.
OWN_CODE: dict[str, PublishedModel] = {
    "NovaSearch/stella_en_1.5B_v5": PublishedModel(
        qwen2, qwen_tokenizer, after=lambda: dense(HIDDEN, 48, bias=True),
        prompts={
            "s2p_query": f"Instruct: {WEB_SEARCH}.\nQuery: ",
            "s2s_query": "Instruct: Retrieve semantically similar text.\nQuery: ",
        },
        own_code=BIDIRECTIONAL_QWEN2, config_changes=auto_map("Qwen2Model"),
    ),
    "Alibaba-NLP/gte-Qwen2-1.5B-instruct": PublishedModel(
        qwen2, qwen_tokenizer, "lasttoken", prompts=instruct("Instruct: {}\nQuery: "),
        own_code=BIDIRECTIONAL_QWEN2, config_changes=auto_map("Qwen2Model"),
    ),
    "nvidia/llama-embed-nemotron-8b": PublishedModel(
        llama, llama_tokenizer, prompts=instruct("Instruct: {}\nQuery: "),
        own_code=BIDIRECTIONAL_LLAMA,
        config_changes={
            **auto_map("LlamaBidirectionalModel", "LlamaBidirectionalConfig"),
            "model_type": "llama_bidirec",
        },
    ),
    "GritLM/GritLM-7B": PublishedModel(
        mistral, mistral_tokenizer, include_prompt=False,
        prompts={"query": f"<|user|>\n{WEB_SEARCH}\n<|embed|>\n", "document": "<|embed|>\n"},
        own_code=BIDIRECTIONAL_MISTRAL, config_changes=auto_map("MistralModel"),
    ),
    "nvidia/NV-Embed-v2": PublishedModel(
        mistral, mistral_tokenizer, include_prompt=False,
        prompts=instruct("Instruct: {}\nQuery: "), own_code=LATENT_ATTENTION,
        config_changes={**auto_map("NVEmbedModel", "NVEmbedConfig"), "model_type": "nvembed"},
    ),
    "perplexity-ai/pplx-embed-v1-4b": PublishedModel(
        qwen3, qwen_tokenizer, own_code=BIDIRECTIONAL_QWEN3, own_modules={2: "Quantizer"},
        config_changes={
            **auto_map("OwnModel", "OwnConfig"), "model_type": "bidirectional_pplx_qwen3",
        },
    ),
    "jinaai/jina-embeddings-v3": PublishedModel(
        xlm_roberta, tiny_models.unigram_tokenizer,
        prompts={
            "retrieval.query": "Represent the query for retrieving evidence documents: ",
            "retrieval.passage": "Represent the document for retrieval: ",
        },
        own_code=OWN_MODULE, own_modules={0: "OwnTransformer"},
    ),
}  # fmt: skip

# Models without a transformer, which sentence-transformers runs.
STATIC: dict[str, PublishedModel] = {
    "sentence-transformers/static-retrieval-mrl-en-v1": PublishedModel(
        None, tiny_models.word_piece_tokenizer, None, lambda: []
    ),
}


def write_any(name: str, folder: Path) -> Path:
    """Writes the folder of any of these models."""
    return write_published_folder({**PUBLISHED, **OWN_CODE, **STATIC}[name], folder)
