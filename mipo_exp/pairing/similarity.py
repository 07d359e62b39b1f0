"""Which texts are nearest to which: for negatives that are hard to tell from the true condition."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from mipo_exp.errors import ConfigError
from mipo_exp.models.hub import Repository
from mipo_exp.store.artefacts import digest
from mipo_exp.store.fingerprints import remembered_sha256

# Texts → (n, n) similarities row by row: `similarity(texts)(i)` are those of text i to all of them, shape (n,).
Similarity = Callable[[Sequence[str]], Callable[[int], np.ndarray]]

LEAST_MAJOR = 6  # of sentence-transformers
_WORD = re.compile(r"\w+")


def bm25(texts: Sequence[str]) -> Callable[[int], np.ndarray]:
    """Okapi BM25 (Lucene's form, k1 = 1.5, b = 0.75) of lower-case words, each text as a query to all."""
    import bm25s

    words = [_WORD.findall(text.lower()) for text in texts]
    if not any(words):
        return in_order(texts)
    index = bm25s.BM25()
    index.index(words, show_progress=False)

    def row(i: int) -> np.ndarray:
        scores: np.ndarray = index.get_scores(words[i]) if words[i] else np.zeros(len(texts))
        return scores

    return row


def in_order(texts: Sequence[str]) -> Callable[[int], np.ndarray]:
    """All texts equally near: takes no time, for checks that only count."""
    zeros = np.zeros(len(texts))
    return lambda i: zeros


@dataclass(frozen=True)
class Encoder:
    """A sentence-embedding model on this machine. `identity` is that of its files."""

    path: Path
    identity: str

    def __call__(self, texts: Sequence[str]) -> Callable[[int], np.ndarray]:
        """Cosine similarities of the texts' embeddings."""
        from sentence_transformers import SentenceTransformer

        model: Any = SentenceTransformer(str(self.path), device="cpu", local_files_only=True)
        vectors = np.asarray(model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False))

        def row(i: int) -> np.ndarray:
            cosines: np.ndarray = vectors @ vectors[i]
            return cosines

        return row


def locate_encoder(name: str, cache: Path, download: bool = True) -> Encoder:
    """The sentence-embedding model of `negatives.embedding_model`: a folder, or an id on the hub. Raises `ConfigError`:
    the package sentence-transformers is missing, or the model is neither here nor reachable."""
    import importlib.util

    key = f"negatives.embedding_model={name}"
    if importlib.util.find_spec("sentence_transformers") is None:
        raise ConfigError(
            f"{key} needs the package sentence-transformers: pip install 'mipo-exp[embeddings]'; or set it to null for "
            "BM25"
        )
    if int((found := version("sentence-transformers")).partition(".")[0]) < LEAST_MAJOR:
        raise ConfigError(
            f"{key}: sentence-transformers {found} is installed, which runs code that lies in a model's folder; pip "
            f"install 'sentence-transformers>={LEAST_MAJOR}', or set it to null for BM25"
        )
    folder = Path(name).expanduser()
    if not folder.is_dir() and (folder.is_absolute() or name.startswith(".")):
        raise ConfigError(f"{key} is not a folder; give a folder with a sentence-transformers model, or null for BM25")
    if not folder.is_dir():
        folder = _from_hub(name, key, download)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    if not any(path.suffix == ".safetensors" for path in files):
        raise ConfigError(f"{key} has no safetensors weights; give a sentence-transformers model that has")
    return Encoder(folder, digest({str(f.relative_to(folder)): remembered_sha256(f, cache) for f in files}))


def _from_hub(name: str, key: str, download: bool) -> Path:
    files = ["*.safetensors", "*.json", "*.txt", "*.model"]
    remedy = "give a folder with a sentence-transformers model, or null for BM25"
    repository = Repository("negatives.embedding_model", name, ConfigError, remedy)
    return repository.fetch(files, None if download else f"{key} is not on this machine yet")
