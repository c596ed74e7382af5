"""Word vectors with DeepDist and gensim: each partition trains on its sentences, the server adds.

spark-submit jobs/word2vec.py                       # the Lee corpus of gensim: 300 news articles
spark-submit jobs/word2vec.py --text 'articles/*.txt' --output vectors.txt
"""

from __future__ import annotations

import argparse
import functools
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

logger = logging.getLogger("sparkdist.word2vec")

#: gensim's own schedule: the step falls evenly over all epochs.
FIRST_ALPHA, LAST_ALPHA = 0.025, 0.0001


def gradient(
    alphas: tuple[float, float], model: Any, sentences: Iterator[list[str]]
) -> dict[str, Any]:
    """Train a copy of the model on a partition, and return how it has changed."""
    vectors, context = model.wv.vectors.copy(), model.syn1neg.copy()
    own = list(sentences)
    model.train(own, total_examples=len(own), epochs=1, start_alpha=alphas[0], end_alpha=alphas[1])
    return {"vectors": model.wv.vectors - vectors, "context": model.syn1neg - context}


def descent(model: Any, update: dict[str, Any]) -> None:
    """Add one partition's change to the model on the server."""
    model.wv.vectors += update["vectors"]
    model.syn1neg += update["context"]


def mean_loss(model: Any, sentences: list[list[str]]) -> float:
    """Negative-sampling loss of the text for each word in it; the model stays as it is."""
    before = model.wv.vectors.copy(), model.syn1neg.copy()
    model.train(
        sentences, total_examples=len(sentences), epochs=1, compute_loss=True,
        start_alpha=1e-12, end_alpha=1e-12,
    )  # fmt: skip
    model.wv.vectors[...], model.syn1neg[...] = before
    return float(model.get_latest_training_loss() / sum(map(len, sentences)))


def read(spark: Any, text: str | None, partitions: int) -> Any:
    """One list of words for each line that has any."""
    from gensim.test.utils import datapath
    from gensim.utils import simple_preprocess

    path = text or Path(datapath("lee_background.cor")).as_uri()
    lines = spark.sparkContext.textFile(path, partitions).repartition(partitions)
    return lines.map(simple_preprocess).filter(bool)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="word2vec.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--text", help="path or glob of text files, an article a line")
    parser.add_argument("--partitions", type=int, default=8, help="(default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=20, help="(default: %(default)s)")
    parser.add_argument("--size", type=int, default=50, help="of a vector (default: %(default)s)")
    parser.add_argument("--min-count", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--words", default="government,afghanistan", help="(default: %(default)s)")
    parser.add_argument("--output", help="write the vectors there, in the format of word2vec")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Build the vocabulary, train, and show the neighbours of some words."""
    options = parse(arguments)
    try:
        from gensim.models.word2vec import Word2Vec
    except ImportError:
        print("jobs/word2vec.py needs gensim: pip install 'sparkdist[word2vec]'", file=sys.stderr)
        return 2
    from pyspark.sql import SparkSession

    import sparkdist

    spark = SparkSession.builder.appName("sparkdist word2vec").getOrCreate()
    corpus = read(spark, options.text, options.partitions).cache()
    sample = corpus.take(300)
    # One thread a task: Spark knows how many cores it has given out.
    model = Word2Vec(
        vector_size=options.size, min_count=options.min_count, seed=options.seed, workers=1
    )
    model.build_vocab(corpus.toLocalIterator())
    print(
        f"{len(model.wv):,} words, {corpus.count():,} articles; loss {mean_loss(model, sample):.3f}"
    )
    steps = [
        FIRST_ALPHA + (LAST_ALPHA - FIRST_ALPHA) * epoch / options.epochs
        for epoch in range(options.epochs + 1)
    ]
    with sparkdist.DeepDist(model) as dd:
        for epoch in range(options.epochs):
            alphas = steps[epoch], steps[epoch + 1]
            result = dd.train(corpus, functools.partial(gradient, alphas), descent)
            print(f"epoch {epoch + 1}: {result.seconds:.1f} s, {result.nit} updates so far")
        model = dd.model
    print(f"loss {mean_loss(model, sample):.3f}")
    for word in options.words.split(","):
        if word in model.wv:
            near = ", ".join(f"{other} {cos:.2f}" for other, cos in model.wv.most_similar(word)[:5])
            print(f"{word}: {near}")
    if options.output:
        model.wv.save_word2vec_format(options.output)
        print(f"vectors: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
