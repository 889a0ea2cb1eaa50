"""The texts of the published measurements with a real language model: documents of the sources of Django 5.1.

pip download --no-deps --no-binary :all: Django==5.1 && tar xzf Django-5.1.tar.gz
PYTHONPATH=. python tests/benchmarks/texts.py Django-5.1 --to DIR

Writes docs.jsonl (the documentation), code.jsonl (Python files), docs_parts.jsonl and code_parts.jsonl (one passage
from the middle of each), french.jsonl (translated messages), mixed.jsonl (the bundled corpus, code and French), and
examples of French and of code for find-feature (french_examples.jsonl, code_examples.jsonl).
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
from pathlib import Path
from random import Random

from harvest.sources import BUNDLED_CORPUS

SHORTEST = 400  # characters of a document
SHORTEST_PASSAGE = 350
TRANSLATION = re.compile(r'^msgstr(?:\[\d\])? ((?:".*"\s)+)', re.M)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("django", type=Path, help="the unpacked sources of Django")
    parser.add_argument("--to", type=Path, required=True, help="directory for the texts")
    options = parser.parse_args()
    options.to.mkdir(parents=True, exist_ok=True)
    texts = {"docs": files(options.django / "docs", "*.txt"), "code": files(options.django / "django", "*.py")}
    texts |= {"docs_parts": middles(texts["docs"], 620), "code_parts": middles(texts["code"], 560)}
    messages = [translations(path) for path in sorted(options.django.rglob("locale/fr/**/*.po"))]
    texts["french"] = pieces(messages, 20)
    texts["french_examples"] = Random(1).sample([text for text in pieces(messages, 2) if len(text) > 80], 24)
    texts["code_examples"] = Random(1).sample([text for text in pieces(texts["code"], 4) if len(text) > 80], 30)
    with gzip.open(BUNDLED_CORPUS, "rt") as lines:
        bundled = [json.loads(line)["text"] for line in lines]
    texts["mixed"] = bundled + texts["code"] + texts["french"]
    for name, documents in texts.items():
        Random(0).shuffle(documents)
        (options.to / f"{name}.jsonl").write_text("".join(f"{json.dumps({'text': text})}\n" for text in documents))
        print(f"{name}: {len(documents):,} documents, {sum(map(len, documents)):,} characters")


def files(folder: Path, pattern: str) -> list[str]:
    texts = (path.read_text(errors="replace") for path in sorted(folder.rglob(pattern)))
    return [text for text in texts if len(text) > SHORTEST]


def middles(texts: list[str], length: int) -> list[str]:
    """One passage of each text, of this many characters from the first line after its middle; none if it is short."""
    starts = ((text, text.find("\n", len(text) // 2) + 1) for text in texts)
    passages = (text[start : start + length] for text, start in starts)
    return [passage for passage in passages if len(passage) > SHORTEST_PASSAGE]


def translations(catalogue: Path) -> str:
    """The translated messages of a catalogue, one per line."""
    parts = TRANSLATION.findall(catalogue.read_text())
    return "\n".join(filter(None, ("".join(re.findall(r'"(.*)"', part)).replace("\\n", " ") for part in parts)))


def pieces(texts: list[str], lines: int) -> list[str]:
    """The texts cut into documents of some lines each."""
    split = [text.splitlines() for text in texts]
    return ["\n".join(text[at : at + lines]) for text in split for at in range(0, len(text), lines)]


if __name__ == "__main__":
    main()
