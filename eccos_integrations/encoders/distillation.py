"""A table of token vectors that stands in for a whole sentence-transformers model."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from eccos_integrations.encoders.embedding import load_sentence_transformer
from eccos_integrations.errors import ConfigError
from eccos_integrations.outcomes import FloatArray

DIMENSIONS = 256
RARE = 1e-4  # a token of this frequency counts half as much as one that is never met
TOKENS_AT_ONCE = 1024


def distilled(model: str) -> tuple[NDArray[np.float16], bytes]:
    """Token vectors (V, D) and tokenizer.json: the model's answer to each token alone, fewer dimensions, rare ones up.

    Frequencies are not observed: vocabularies stand in order of frequency, and word frequencies follow Zipf's law.
    Weights: Arora et al., "A Simple but Tough-to-Beat Baseline for Sentence Embeddings", ICLR 2017.

    Args:
        model: Folder, or name in the local cache, of a sentence-transformers model.

    Raises:
        ConfigError: There is no such model, or its tokens cannot be had one by one.
        MissingExtraError: sentence-transformers is not installed.
    """
    loaded = load_sentence_transformer(model)
    tokenizer = getattr(loaded.tokenizer, "backend_tokenizer", None)
    if tokenizer is None:
        raise ConfigError(f"encoder: the tokens of {model!r} cannot be encoded one by one; "
                          "distil a transformer with a fast tokenizer")  # fmt: skip
    special = set(loaded.tokenizer.all_special_ids)
    tokens = np.array(sorted(set(tokenizer.get_vocab().values()) - special))
    table = np.zeros((tokens.max() + 1, DIMENSIONS))
    vectors = _main_axes(_token_vectors(loaded, tokens))
    frequency = 1 / np.arange(1, len(tokens) + 1)
    frequency /= frequency.sum()
    table = np.zeros((max(tokens.max(), *special) + 1, vectors.shape[1]), dtype=np.float16)
    table[tokens] = vectors * (RARE / (RARE + frequency))[:, None]
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return table, tokenizer.to_str().encode()


def _token_vectors(model: Any, tokens: NDArray[np.int64]) -> FloatArray:
    """The model's vectors of texts of one token each, which cannot all be written as texts."""
    import torch
    from threadpoolctl import threadpool_limits

    whole, alone = (model.tokenizer("a", add_special_tokens=special)["input_ids"] for special in (True, False))
    start = next(i for i in range(len(whole)) if whole[i : i + len(alone)] == alone)
    before, after = whole[:start], whole[start + len(alone) :]
    vectors = []
    with torch.inference_mode(), threadpool_limits(limits=1, user_api="openmp"):
        for some in np.array_split(tokens, -(-len(tokens) // TOKENS_AT_ONCE)):
            ids = torch.tensor([[*before, token, *after] for token in some.tolist()], device=model.device)
            answer = model({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
            vectors.append(answer["sentence_embedding"].float().cpu().numpy())
    return np.concatenate(vectors).astype(np.float64)


def _main_axes(vectors: FloatArray) -> FloatArray:
    """The vectors in their first principal components."""
    centred = vectors - vectors.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    projected: FloatArray = centred @ axes[:, ::-1][:, :DIMENSIONS]
    return projected
