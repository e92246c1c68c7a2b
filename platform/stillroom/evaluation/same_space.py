"""Whether two encoders write into one vector space, measured on texts: names say nothing.

Both encode the same texts in the same role. In one space a text's two vectors point in the same
direction, so that an index of the one's vectors answers the other's queries.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from stillroom.encoders.contract import BaseContract, Role, index_conflict
from stillroom.encoders.export.int8 import row_agreement
from stillroom.encoders.interface import Embedder, truncate_vectors

# What both roles must reach. Of MiniLM without a layer, untrained, the nearest vector is the right
# one for 99.5 % of passages, at a mean cosine of .89; without three layers for 87 %, at .37; of two
# models of different spaces for one text in hundreds, at .00.
MIN_NEAREST = 0.9
MIN_COSINE = 0.6


@dataclass(frozen=True)
class RoleAgreement:
    """How well two encoders agree on texts of one role.

    Attributes:
        texts: how many were compared.
        nearest: the share of texts whose vector by the first encoder is nearer to the second's
            vector of the same text than to its vector of any other text.
        cosine: of a text's two vectors, on average; less where dot compares them and their lengths
            differ (see `row_agreement`).
    """

    texts: int
    nearest: float
    cosine: float


@dataclass(frozen=True)
class SpaceComparison:
    """The comparison of a student with a teacher.

    Attributes:
        dims: the vector size that was compared; None where none was.
        roles: role → agreement; empty where nothing was compared.
        conflict: why one index cannot hold the vectors of both; None when it can.
    """

    dims: int | None
    roles: Mapping[Role, RoleAgreement]
    conflict: str | None

    def as_json(self) -> dict[str, Any]:
        """For release.json and --json."""
        return {
            "same": self.conflict is None,
            "dims": self.dims,
            "conflict": self.conflict,
            "roles": {role: asdict(agreement) for role, agreement in self.roles.items()},
        }

    def sentence(self) -> str:
        """The result, with its figures."""
        shares = "can share one index" if self.conflict is None else "cannot share an index"
        found = " and ".join(
            f"{agreement.nearest:.1%} of {agreement.texts} {WORDS[role]} (mean cosine "
            f"{agreement.cosine:.3f})"
            for role, agreement in self.roles.items()
        )
        if not found:
            return f"teacher and student {shares}: {self.conflict}"
        return (
            f"teacher and student {shares}: with {self.dims} dims, the student's vector of a text "
            f"is nearest to the teacher's of the same text for {found}"
        )


WORDS: dict[Role, str] = {"query": "queries", "passage": "passages"}


def encode_probes(encoder: Embedder, texts: Mapping[Role, Sequence[str]]) -> dict[Role, np.ndarray]:
    """Role → vectors of its texts, at full size, under the encoder's own prompts."""
    return {role: encoder.encode(list(of_role), role) for role, of_role in texts.items()}


def compare_spaces(
    student: BaseContract,
    teacher: BaseContract,
    by_student: Mapping[Role, np.ndarray],
    by_teacher: Mapping[Role, np.ndarray],
) -> SpaceComparison:
    """Compares the vectors that both made of the same distinct texts, with `encode_probes`."""
    conflict = index_conflict(student.model_copy(update={"space": teacher.space}), teacher)
    if conflict is not None:
        return SpaceComparison(None, {}, conflict)
    dims = max(set(student.dims) & set(teacher.dims))
    roles = {
        role: _agreement(
            truncate_vectors(by_student[role], dims, student.normalise),
            truncate_vectors(by_teacher[role], dims, teacher.normalise),
        )
        for role in by_student
    }
    same = all(
        agreement.nearest >= MIN_NEAREST and agreement.cosine >= MIN_COSINE
        for agreement in roles.values()
    )
    return SpaceComparison(dims, roles, None if same else "their vectors of a text differ too much")


def _agreement(first_nd: np.ndarray, second_nd: np.ndarray) -> RoleAgreement:
    """Of vectors, row by row of one text."""
    first_unit, second_unit = (truncate_vectors(v, v.shape[1], True) for v in (first_nd, second_nd))
    cosines_nn = first_unit @ second_unit.T
    own_n = np.diag(cosines_nn)
    others_nn = cosines_nn - np.diag(np.full(len(own_n), np.inf, dtype=np.float32))
    nearest = float((own_n > others_nn.max(axis=1)).mean())
    return RoleAgreement(len(own_n), nearest, float(row_agreement(first_nd, second_nd).mean()))
