"""Makes a tiny llama-architecture GGUF, with a real tokenizer and a chat template, from nothing.

    python tests/lab/make_tiny_gguf.py              prints the path of the model, made if need be

It is kept in $FABRIC_TEST_CACHE (default ~/.cache/fabric-tests) under the hash of this recipe.

The tokenizer (byte-level BPE, as GPT-2's) is trained on English that the standard library carries.
Attention and feed-forward weights are random and cost what they cost, but add next to nothing to
the residual stream.  Embedding and output matrices hold a factorisation of the text's bigram
log-probabilities, so the model speaks word salad in valid UTF-8, and at some point stops.

The trick that makes it exact: every embedding gets the same norm, so that the final RMSNorm is one
constant, which the output matrix undoes.  Two extra columns do that: one fills up the norm, one is
the same for all tokens and carries the unigram bias.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path
from pydoc_data.topics import topics

import gguf
import numpy as np
from numpy.typing import NDArray

LAYERS, WIDTH, FEED_FORWARD, HEADS, KV_HEADS = 4, 256, 512, 8, 4
VOCABULARY = 768
CONTEXT = 131_072
TEXT_CHARACTERS = 200_000
END_BIAS = -3.5
"""Log-probability that an answer ends at any one token, before normalising."""

BEGIN, END_OF_TEXT, MESSAGE, MESSAGE_END = "<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>"
SPECIAL = [BEGIN, END_OF_TEXT, MESSAGE, MESSAGE_END]
TEMPLATE = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WORDS = re.compile(r"'(?:s|t|re|ve|m|ll|d)| ?[^\W\d_]+| ?\d+| ?[^\s\w]+|\s+(?!\S)|\s+")

Matrix = NDArray[np.float64]


def printable_bytes() -> dict[int, str]:
    """GPT-2's way to write any byte as a visible character."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {
        byte: chr(256 + index) for index, byte in enumerate(hidden)
    }


BYTES = printable_bytes()


def training_text() -> str:
    text = " ".join(topics[name] for name in sorted(topics))
    text = re.sub(r'[^\x20-\x7e\n]|[*=\-`_^~|]{2,}|"', "", text)
    return re.sub(r"\s+", " ", text)[:TEXT_CHARACTERS]


def words_of(text: str) -> list[str]:
    return ["".join(BYTES[byte] for byte in word.encode()) for word in WORDS.findall(text)]


def merged(symbols: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    out: list[str] = []
    for symbol in symbols:
        if out and (out[-1], symbol) == pair:
            out[-1] += symbol
        else:
            out.append(symbol)
    return tuple(out)


def train_tokenizer(
    words: list[str], merges: int
) -> tuple[list[tuple[str, str]], dict[str, tuple[str, ...]]]:
    """The merges in order, and every word cut by them."""
    counts = Counter(words)
    cut = {word: tuple(word) for word in counts}
    done: list[tuple[str, str]] = []
    for _ in range(merges):
        pairs: Counter[tuple[str, str]] = Counter()
        for word, symbols in cut.items():
            for pair in pairwise(symbols):
                pairs[pair] += counts[word]
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        done.append(best)
        cut = {word: merged(symbols, best) for word, symbols in cut.items()}
    return done, cut


def bigram_matrices(tokens: list[str], ids: NDArray[np.int64]) -> tuple[Matrix, Matrix, float]:
    """Embedding and output matrix, and the scale of the residual stream between them."""
    size, rank = len(tokens), WIDTH - 2
    pairs = np.zeros((size, size))
    np.add.at(pairs, (ids[:-1], ids[1:]), 1)
    unigram = pairs.sum(axis=0) + 0.05
    unigram /= unigram.sum()
    bigram = (pairs + 8 * unigram) / (pairs.sum(axis=1, keepdims=True) + 8)
    bias = np.log(unigram)
    left, strength, right = np.linalg.svd(np.log(bigram) - bias, full_matrices=False)
    before = left[:, :rank] * np.sqrt(strength[:rank])
    after = right[:rank].T * np.sqrt(strength[:rank])

    # Never say a special token or a byte that is not plain text by itself.
    unsayable = np.array(
        [
            token in SPECIAL or (len(token) == 1 and not token.isascii() and token != BYTES[32])
            for token in tokens
        ]
    )
    after[unsayable] = 0
    bias[unsayable] = -60
    bias[tokens.index(MESSAGE_END)] = END_BIAS

    squares = (before**2).sum(axis=1)
    norm = squares.max() * 1.05 + 1
    scale = float(np.sqrt(2 * norm / WIDTH))
    embedding = np.column_stack([before, np.sqrt(norm - squares), np.full(size, np.sqrt(norm))])
    output = np.column_stack([after, np.zeros(size), bias / np.sqrt(norm)]) * scale
    return embedding, output, scale


def write(path: Path) -> None:
    words = words_of(training_text())
    merges, cut = train_tokenizer(words, VOCABULARY - 256 - len(SPECIAL))
    tokens = list(dict.fromkeys([*SPECIAL, *BYTES.values(), *(a + b for a, b in merges)]))
    number = {token: index for index, token in enumerate(tokens)}
    ids = np.array([number[token] for word in words for token in cut[word]])
    embedding, output, scale = bigram_matrices(tokens, ids)

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([token.encode() for token in tokens])
    kinds = gguf.TokenType
    writer.add_token_types([kinds.CONTROL if t in SPECIAL else kinds.NORMAL for t in tokens])
    writer.add_token_merges([f"{a} {b}" for a, b in merges])
    writer.add_bos_token_id(number[BEGIN])
    writer.add_eos_token_id(number[MESSAGE_END])
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)

    random = np.random.default_rng(0)

    def noise(name: str, rows: int, columns: int, deviation: float) -> None:
        weights = random.standard_normal((rows, columns)) * deviation
        writer.add_tensor(f"{name}.weight", weights.astype(np.float16))

    def ones(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, dtype=np.float32))

    writer.add_tensor("token_embd.weight", embedding.astype(np.float16))
    ones("output_norm")
    writer.add_tensor("output.weight", output.astype(np.float16))
    even, faint = WIDTH**-0.5, 0.02 * scale
    narrow = WIDTH // HEADS * KV_HEADS
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        ones(f"{block}.attn_norm")
        noise(f"{block}.attn_q", WIDTH, WIDTH, even)
        noise(f"{block}.attn_k", narrow, WIDTH, even)
        noise(f"{block}.attn_v", narrow, WIDTH, even)
        noise(f"{block}.attn_output", WIDTH, WIDTH, faint * even)
        ones(f"{block}.ffn_norm")
        noise(f"{block}.ffn_gate", FEED_FORWARD, WIDTH, even)
        noise(f"{block}.ffn_up", FEED_FORWARD, WIDTH, even)
        noise(f"{block}.ffn_down", WIDTH, FEED_FORWARD, faint * FEED_FORWARD**-0.5)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tiny_gguf() -> Path:
    """The model's path; made within seconds where it is missing.  Safe when two do so at once."""
    cache = Path(os.environ.get("FABRIC_TEST_CACHE") or Path.home() / ".cache" / "fabric-tests")
    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:10]
    path = cache / f"tiny-{recipe}.gguf"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as work:
            write(Path(work) / "tiny.gguf")
            (Path(work) / "tiny.gguf").rename(path)
    return path


if __name__ == "__main__":
    print(tiny_gguf())
