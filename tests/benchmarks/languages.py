"""BM25 in languages other than English: with the analysis of each language, and with English's.

    python tests/benchmarks/languages.py [--languages de,ja,…] [--folder DIR] [--parts]

On Debian's translated package descriptions (query: the short one; passage: the long one), which
apt fetches into DIR. Needs Debian's or Ubuntu's apt, and no root. Prints nDCG@10; with --parts,
also without stop words and without stemmer, which shows what each is worth.
"""

import argparse
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import bm25s
import Stemmer

from stillroom.data.cleaning.sampling import evenly_spaced
from stillroom.data.readers.records import EvaluationSet
from stillroom.data.text import analyser
from stillroom.data.text.detection import detect_language
from stillroom.evaluation.evaluate import RANKING_DEPTH, score_ranking
from stillroom.mining.bm25 import Bm25

LANGUAGES = "en,cs,da,de,es,fi,fr,it,ja,ko,nl,pl,pt_BR,ru,sv,uk,zh_CN"
QUERIES, PASSAGES = 500, 20_000  # at most


def fetch(languages: list[str], folder: Path) -> None:
    """Fetches the descriptions in these languages with apt, into a list folder of its own."""
    (folder / "partial").mkdir(parents=True, exist_ok=True)
    options = [f"Acquire::Languages={','.join(languages)}", f"Dir::State::lists={folder}"]
    options += ["Debug::NoLocking=1", f"Dir::Cache={folder}"]
    command = ["apt-get", *(part for option in options for part in ("-o", option)), "update"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def read_descriptions(language: str, folder: Path) -> Iterator[tuple[str, str]]:
    """(short, long) description of each package, in one language."""
    escaped = language.replace("_", "%5f")
    for file in sorted(folder.glob(f"*_main_i18n_Translation-{escaped}*")):
        content = subprocess.run(
            ["/usr/lib/apt/apt-helper", "cat-file", file], check=True, capture_output=True
        ).stdout.decode()
        for entry in content.split(f"\nDescription-{language}: ")[1:]:
            short, _, rest = entry.split("\n\n")[0].partition("\n")
            lines = [line[1:] for line in rest.split("\n") if line.startswith(" ")]
            yield short.strip(), "\n".join("" if line == "." else line for line in lines).strip()


def evaluation_set(descriptions: Iterator[tuple[str, str]]) -> EvaluationSet:
    """Distinct short descriptions, judged among distinct long ones."""
    pairs: dict[str, str] = {}  # passage → query
    queries: set[str] = set()
    for query, passage in descriptions:
        if query and passage and passage not in pairs and query not in queries:
            pairs[passage] = query
            queries.add(query)
    passages = dict(enumerate(list(pairs)[:PASSAGES]))
    judged = evenly_spaced(len(passages), QUERIES).tolist()
    return EvaluationSet(
        passages={str(i): passage for i, passage in passages.items()},
        queries={str(i): pairs[passages[i]] for i in judged},
        qrels={str(i): {str(i): 1} for i in judged},
    )


def ndcg(judged: EvaluationSet, language: str) -> float:
    """nDCG@10 of BM25."""
    passages, queries = list(judged.passages.values()), judged.judged_queries()
    index = Bm25(passages, [language] * len(passages))
    ranking, _ = index.search(queries, [language] * len(queries), RANKING_DEPTH)
    return score_ranking(ranking, judged)["ndcg@10"]


def ndcg_without(part: str, judged: EvaluationSet, language: str) -> float:
    """nDCG@10 of BM25 without `stop_words`, or without stemmer (`stemmer_name`)."""
    nothing = {"stop_words": frozenset(), "stemmer_name": None}[part]
    with patch.object(analyser, part, lambda language: nothing):
        return ndcg(judged, language)


def english_ndcg(judged: EvaluationSet) -> float:
    """nDCG@10 with the analysis that bm25s's examples have: runs of letters, English for all."""
    stemmer = Stemmer.Stemmer("english")

    def words(texts: list[str]) -> list[list[str]]:
        return bm25s.tokenize(
            texts, stopwords="en", stemmer=stemmer, return_ids=False, show_progress=False
        )

    index = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    index.index(words(list(judged.passages.values())), show_progress=False)
    ranking = []
    for query in words(judged.judged_queries()):
        scores = index.get_scores(query) if query else [0.0] * len(judged.passages)
        best = sorted(range(len(scores)), key=lambda row: -scores[row])[:RANKING_DEPTH]
        ranking.append([row if scores[row] > 0 else -1 for row in best])
    return score_ranking(ranking, judged)["ndcg@10"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--languages", default=LANGUAGES)
    parser.add_argument("--folder", type=Path, help="keeps what apt fetches")
    parser.add_argument("--parts", action="store_true", help="what stop words and stemmers do")
    args = parser.parse_args()
    languages = args.languages.split(",")
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        if not list(folder.glob("*Translation-*")):
            fetch(languages, folder)
        parts = {"without stop words": "stop_words", "without stemmer": "stemmer_name"}
        titles = ["English's analysis", "its own", *(parts if args.parts else ())]
        print("| language | detected | passages | queries |", " | ".join(titles), "|")
        print("| --- | --- | ---: | ---: |", " ".join(["---: |"] * len(titles)))
        for language in languages:
            judged = evaluation_set(read_descriptions(language, folder))
            detected = detect_language(list(judged.passages.values()))
            sizes = f"{len(judged.passages):,} | {len(judged.qrels):,}"
            scores = [english_ndcg(judged), ndcg(judged, detected)]
            if args.parts:
                scores += [ndcg_without(part, judged, detected) for part in parts.values()]
            shown = " | ".join(f"{score:.3f}" for score in scores)
            print(f"| {language} | {detected} | {sizes} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
