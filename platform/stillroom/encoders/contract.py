"""`contract.json`: everything besides the weights that determines a text's vector."""

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from stillroom.errors import UserError

Role = Literal["query", "passage"]
Architecture = Literal["decoder", "encoder"]
Attention = Literal["causal", "bidirectional"]
Pooling = Literal["mean", "weighted_mean", "last", "cls", "max", "mean_sqrt_len", "latent"]
Similarity = Literal["cosine", "dot"]
Activation = Literal["identity", "tanh", "relu", "gelu", "silu", "sigmoid"]
Precision = Literal["float32", "bfloat16", "float16"]
CombineMethod = Literal["concatenate", "average"]

# What happens to a text that is too long: its end or its beginning is cut off, or it is refused.
Overlong = Literal["cut", "cut_left", "refuse"]

CONTRACT_FILE = "contract.json"


class Prompts(BaseModel):
    """Prefixes of a text, exactly as written."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    query: str = ""
    passage: str = ""


class LatentAttentionSizes(BaseModel):
    """The sizes of latent attention; the defaults are its paper's (arXiv 2405.17428)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: PositiveInt = 512
    heads: PositiveInt = 8
    head_dims: PositiveInt | None = None  # None: the width of the states


class ProjectionLayer(BaseModel):
    """One layer between the pooled states and the vector; its weights are in the model's folder.

    Attributes:
        kind: `dense` is a linear map and an activation; `layer_norm` keeps the size.
        dims: of its output.
        bias: of a dense layer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["dense", "layer_norm"] = "dense"
    dims: PositiveInt
    bias: bool = False
    activation: Activation = "identity"


class Comparison(NamedTuple):
    """How two vectors of an encoder are compared, and whether they are of unit length."""

    similarity: Similarity
    normalise: bool

    def changed_to(self, similarity: Similarity | None) -> "Comparison":
        """The same by another similarity; None, or the one that it is, changes nothing.

        A change to `dot` keeps the vectors' lengths: inner products of unit vectors are cosines.
        """
        if similarity in (None, self.similarity):
            return self
        return Comparison(similarity, normalise=similarity == "cosine")


class BaseContract(BaseModel):
    """Properties of vectors that every user of them must know.

    Attributes:
        max_tokens: the most ids of a text, including prompt, special tokens and second copy.
        dims: the sizes that a vector may be cut to (Matryoshka), the full one first.
        normalise: whether vectors are of unit length; never needed for `dot`.
        similarity: how two vectors are compared. Vectors of `cosine` are always normalised, so that
            an index may take their inner product.
        space: the id of the vector space; encoders of the same space may share one index.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_tokens: PositiveInt
    dims: tuple[PositiveInt, ...]
    normalise: bool = True
    similarity: Similarity = "cosine"
    space: str

    @model_validator(mode="after")
    def _dims_fall(self) -> Self:
        if not self.dims or list(self.dims) != sorted(set(self.dims), reverse=True):
            raise ValueError("dims must be distinct sizes, the largest first")
        return self

    @model_validator(mode="after")
    def _cosine_is_an_inner_product(self) -> Self:
        if self.similarity == "cosine" and not self.normalise:
            raise ValueError("vectors that are compared by cosine are normalised")
        return self

    @property
    def comparison(self) -> Comparison:
        """How vectors are compared."""
        return Comparison(self.similarity, self.normalise)

    def resolve_dims(self, dims: int | None) -> int:
        """The size of the requested vectors; None is the full one.

        Raises:
            UserError: when vectors cannot be cut to that size.
        """
        if dims is not None and dims not in self.dims:
            allowed = ", ".join(map(str, self.dims))
            raise UserError("dims", f"{dims} is not a size of this encoder", f"Use {allowed}")
        return dims or self.dims[0]

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """The contract in a model's folder, which must be of this class.

        Raises:
            UserError: when the file is missing or broken, or the contract is of another class.
        """
        path = Path(folder) / CONTRACT_FILE
        try:
            text = path.read_text(encoding="utf-8")
            contract = _contract_class(json.loads(text)).model_validate_json(text)
        except FileNotFoundError as error:
            raise UserError(str(path), "does not exist", "Name an encoder's folder") from error
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise UserError(
                f"{path}: {field}", first["msg"], "Restore the file that training wrote"
            ) from error
        except ValueError as error:
            raise UserError(
                str(path), f"is not JSON: {error}", "Restore the file that training wrote"
            ) from error
        if not isinstance(contract, cls):
            raise no_weights_error(str(folder), contract)
        return contract

    def write(self, folder: str | Path) -> None:
        """Writes contract.json into the folder."""
        content = json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False)
        (Path(folder) / CONTRACT_FILE).write_text(content + "\n", encoding="utf-8")


class Contract(BaseContract):
    """How a model with weights encodes. Training writes it once; everything else reads it.

    Attributes:
        base: the model that training started from, as `locate_model` names it.
        latents: set exactly when pooling is latent.
        projection: the layers between the pooled states and the vector.
        echo: the text is given twice, and its second copy is pooled.
        named_prompts: further prompts, by the names that the model's authors gave them.
        pool_prompt: False leaves the prompt, and the tokens before it, out of pooling.

    The tokens that stand before and behind every text, such as CLS and EOS, are the tokenizer's.
    """

    base: str
    architecture: Architecture
    attention: Attention
    pooling: Pooling
    latents: LatentAttentionSizes | None = None
    projection: tuple[ProjectionLayer, ...] = ()
    echo: bool = False
    prompts: Prompts = Prompts()
    named_prompts: dict[str, str] = Field(default_factory=dict)
    pool_prompt: bool = True
    precision: Precision = "float32"

    @model_validator(mode="after")
    def _latents_are_pooled(self) -> Self:
        if (self.pooling == "latent") != (self.latents is not None):
            raise ValueError("latents belong to latent pooling, and it needs them")
        return self


class EnsembleContract(BaseContract):
    """Several encoders as one (Jasper and Stella, arXiv 2412.19048): the concatenation or the mean
    of the members' unit vectors, of unit length again. Its similarity is cosine.

    Attributes:
        members: folders inside this one, each an encoder with its own contract.
    """

    combine: CombineMethod
    members: tuple[str, ...]


class ApiContract(BaseContract):
    """A model behind an embeddings API of OpenAI's schema.

    Holds no key and no permission to use the API: this file may come from anywhere.

    Attributes:
        send_dimensions: requests name the dims, for models that can cut their vectors.
        extra_body: role → more fields of a request.
    """

    base_url: str
    model: str
    prompts: Prompts = Prompts()
    send_dimensions: bool = False
    extra_body: dict[Role, dict[str, Any]] = Field(default_factory=dict)


class LibraryContract(BaseContract):
    """A model that a library runs by itself, from the files of its base.

    Attributes:
        base: the model, as `locate_model` names it; its weights stay where they are.
        prompts: of the roles; `named_prompts` has all that the model's authors named.
        precision: of its weights.
    """

    library: Literal["sentence-transformers"]
    base: str
    prompts: Prompts = Prompts()
    named_prompts: dict[str, str] = Field(default_factory=dict)
    precision: Precision = "float32"


# A contract's class by the field that no other class has.
CONTRACT_CLASSES: dict[str, type[BaseContract]] = {
    "members": EnsembleContract,
    "base_url": ApiContract,
    "library": LibraryContract,
}


def _contract_class(content: Any) -> type[BaseContract]:
    fields = content if isinstance(content, dict) else {}
    return next((kind for name, kind in CONTRACT_CLASSES.items() if name in fields), Contract)


def no_weights_error(where: str, contract: BaseContract) -> UserError:
    """The error for training or exporting something that has no weights."""
    problem = "is an export, a graph of one runtime"
    if isinstance(contract, ApiContract):
        problem = f"is the API at {contract.base_url}, whose weights are not here"
    elif isinstance(contract, EnsembleContract):
        problem = "is several models, which have no weights as one"
    elif isinstance(contract, LibraryContract):
        problem = f"is run by {contract.library}, and its weights are not read here"
    return UserError(
        where, f"{problem}: it only gives vectors", "Name a single model that stillroom reads"
    )


def index_conflict(first: BaseContract, second: BaseContract) -> str | None:
    """Why vectors of two encoders must not be in one index; None when they may.

    They may share it at the sizes that both have: a student may have only a Matryoshka prefix of
    its teacher's dims.
    """
    if first.space != second.space:
        return f"their spaces differ ({first.space} and {second.space})"
    if first.similarity != second.similarity:
        return f"one is searched by {first.similarity}, the other by {second.similarity}"
    if first.normalise != second.normalise:
        return "only one of them normalises its vectors"
    if not set(first.dims) & set(second.dims):
        return f"they share no vector size ({first.dims} and {second.dims})"
    return None
