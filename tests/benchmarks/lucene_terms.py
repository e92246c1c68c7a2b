"""Terms of BM25 against those of Lucene's analysers, on Debian's descriptions.

    python tests/benchmarks/lucene_terms.py --jar anserini-VERSION-fatjar.jar [--folder DIR]

Needs Java. `pip download --no-deps pyserini` has the jar, in pyserini/resources/jars. Prints, for
each language, the share of terms in common (Dice) and the terms that only one of the two has most
often: with stemmers and stop words, and without either (Lucene's StandardAnalyzer or CJKAnalyzer
against the language `mul`).
"""

import argparse
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

from languages import fetch, read_descriptions

from stillroom.data.cleaning.sampling import evenly_spaced
from stillroom.data.text.analyser import Analyser

TEXTS = 1000
SHOWN = 12  # terms that only one has
ANALYSERS = {  # Debian's name of a language → ours, and Lucene's class
    "da": ("da", "da.DanishAnalyzer"),
    "de": ("de", "de.GermanAnalyzer"),
    "en": ("en", "en.EnglishAnalyzer"),
    "es": ("es", "es.SpanishAnalyzer"),
    "fi": ("fi", "fi.FinnishAnalyzer"),
    "fr": ("fr", "fr.FrenchAnalyzer"),
    "it": ("it", "it.ItalianAnalyzer"),
    "ja": ("ja", "cjk.CJKAnalyzer"),
    "ko": ("ko", "cjk.CJKAnalyzer"),
    "pt_BR": ("pt", "pt.PortugueseAnalyzer"),
    "ru": ("ru", "ru.RussianAnalyzer"),
    "zh_CN": ("zh", "cjk.CJKAnalyzer"),
}
PROGRAM = """
import java.io.PrintStream;
import java.nio.file.*;
import java.util.StringJoiner;
import org.apache.lucene.analysis.*;
import org.apache.lucene.analysis.tokenattributes.CharTermAttribute;
public class Terms {
  public static void main(String[] args) throws Exception {
    Analyzer analyser = (Analyzer) Class.forName("org.apache.lucene.analysis." + args[0])
        .getDeclaredConstructor().newInstance();
    PrintStream out = new PrintStream(System.out, false, "UTF-8");
    for (String line : Files.readAllLines(Path.of(args[1]))) {
      StringJoiner terms = new StringJoiner("\\t");
      try (TokenStream stream = analyser.tokenStream("text", line)) {
        CharTermAttribute term = stream.addAttribute(CharTermAttribute.class);
        stream.reset();
        while (stream.incrementToken()) terms.add(term.toString());
        stream.end();
      }
      out.println(terms);
    }
    out.flush();
  }
}
"""


def lucene_terms(analyser: str, texts: list[str], jar: Path) -> list[Counter[str]]:
    """The terms of each text."""
    with tempfile.TemporaryDirectory() as folder:
        program, lines = Path(folder) / "Terms.java", Path(folder) / "texts"
        program.write_text(PROGRAM)
        lines.write_text("\n".join(" ".join(text.split()) for text in texts), encoding="utf-8")
        command = ["java", "-cp", str(jar), str(program), analyser, str(lines)]
        printed = subprocess.run(command, check=True, capture_output=True).stdout.decode()
    return [Counter(filter(None, line.split("\t"))) for line in printed.split("\n")[: len(texts)]]


def compare(theirs: list[Counter[str]], ours: list[Counter[str]]) -> str:
    """The share in common, and the terms that only one of the two has."""
    pairs = list(zip(theirs, ours, strict=True))
    common = sum((their & our).total() for their, our in pairs)
    both = sum(their.total() + our.total() for their, our in pairs)
    only = [
        " ".join(term for term, _ in sum(left, Counter()).most_common(SHOWN))
        for left in ([a - b for a, b in pairs], [b - a for a, b in pairs])
    ]
    return f"{2 * common / both:.3f}; only Lucene: {only[0]}; only here: {only[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jar", type=Path, required=True)
    parser.add_argument("--folder", type=Path, help="keeps what apt fetches")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        if not list(folder.glob("*Translation-*")):
            fetch(list(ANALYSERS), folder)
        for name, (language, analyser) in ANALYSERS.items():
            texts = [passage for _, passage in read_descriptions(name, folder)]
            texts = [texts[row] for row in evenly_spaced(len(texts), TEXTS)]
            plain = analyser if analyser.startswith("cjk") else "standard.StandardAnalyzer"
            for code, their_class in ((language, analyser), ("mul", plain)):
                terms = Analyser(code).terms
                ours = [Counter(terms(text)) for text in texts]
                print(f"{name} {code}: {compare(lucene_terms(their_class, texts, args.jar), ours)}")


if __name__ == "__main__":
    main()
