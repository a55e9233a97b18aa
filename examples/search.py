"""Search by meaning: the sentences of sentences.txt that are nearest to the one you type.

    orch up examples/embedder.py:Embedder                     # in one terminal, or: make up
    python examples/search.py "how do I keep plants alive"    # in another

With no instance running it says so in one line, and ends with the exit code that `orch` itself would.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from orch import Client
from orch.errors import OrchError

SENTENCES = Path(__file__).with_name("sentences.txt")


def search(query: str, sentences: list[str], instance: str) -> list[tuple[float, str]]:
    """Every sentence with its score, best first: 1.0 is the same meaning, about 0 has nothing to do with it."""
    with Client(name=instance) as client:
        vectors = np.stack(list(client.map(sentences, concurrency=256, progress=True)))
        wanted = client.request(query, timeout=30.0)
    scores = vectors @ wanted  # vectors of length 1: their dot product is the cosine of the angle between them
    return [(float(scores[i]), sentences[i]) for i in np.argsort(-scores)]


def main() -> int:
    """Read the command line, print the neighbours; return the exit code."""
    parser = argparse.ArgumentParser(description="Print the sentences nearest in meaning to a query.")
    parser.add_argument("query", help="any sentence or question")
    parser.add_argument("--name", default="default", help="the instance to ask (default: %(default)s)")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="how many to print (default: %(default)s)")
    options = parser.parse_args()
    if options.top < 1:
        parser.error("--top must be at least 1")

    sentences = SENTENCES.read_text(encoding="utf-8").splitlines()
    try:
        neighbours = search(options.query, sentences, options.name)
    except OrchError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"Of {len(sentences)} sentences, the nearest to: {options.query}")
    for score, sentence in neighbours[: options.top]:
        print(f"  {score:5.2f}  {sentence}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
