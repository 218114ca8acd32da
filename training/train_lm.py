"""Trains ``demo-lm``, a small Llama, on old children's books, fairy tales and novels, and writes the folder that the package ships.

    python training/train_lm.py ../shared/data/text_corpora                          # an hour on one core
    python training/train_lm.py ../shared/data/text_corpora --out trial --minutes 2  # does it run?

A run that was stopped goes on from its last checkpoint if it is started with the same ``--work`` folder. The schedule follows the
minutes spent in training, so that a slower machine trains on fewer tokens and still ends with a learning rate of zero. Texts named
``*_valid*`` take no part in the training; bits per byte of these are printed at the end, with the weights as stored.
"""

from __future__ import annotations

import argparse
import itertools
import lzma
import pathlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from serverlight.evaluation.language import bits_per_byte

SEED = 20251114
TRAINING_TEXTS = ("fairytaleqa_train", "chilit_train", "novels_train")
END = "<|endoftext|>"
VOCABULARY, CONTEXT = 4096, 1024
SHORT = 256
"""Most of the training sees windows of ``SHORT`` tokens, since long ones cost more each; the end sees the whole context."""

LONG_FROM = 0.75
"""Share of the time after which windows are as long as the context."""

WARM_UP, DECAY_FROM = 0.02, 0.6
"""Shares of the time at which the learning rate has risen, and at which it starts to fall, in a straight line to zero."""

WEIGHT_DECAY = 0.05
CHECKPOINT_S = 120
REPORT_STEPS = 20
DATA = pathlib.Path(__file__).parents[1] / "src" / "serverlight" / "models" / "data" / "demo_lm"

Ids = NDArray[np.uint16]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long to train, and how fast."""

    seconds: float
    batch_tokens: int
    """Tokens of one step."""

    matrix_rate: float
    """Peak learning rate of Muon, which has the matrices inside the layers."""

    other_rate: float
    """Peak learning rate of AdamW, which has the embedding and the norms."""


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(SEED)
    args.work.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer_of(args.texts, args.work)
    tokens = tokens_of(args.texts, tokenizer, args.work)
    print(f"{len(tokens):,} tokens of text", flush=True)
    network = LlamaForCausalLM(config_of(tokenizer))
    print(f"{sum(p.numel() for p in network.parameters()):,} parameters", flush=True)
    schedule = Schedule(
        seconds=60 * args.minutes,
        batch_tokens=args.batch_tokens,
        matrix_rate=args.matrix_rate,
        other_rate=args.other_rate,
    )
    fit(network, tokens, schedule, args.work / "checkpoint.pt")
    save(network, tokenizer, args.out)
    print_quality(args.out, args.texts)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=pathlib.Path, help="folder of *.txt.xz")
    parser.add_argument("--out", type=pathlib.Path, default=DATA, help="folder for the model")
    parser.add_argument(
        "--work", type=pathlib.Path, default=pathlib.Path("out/train_lm"), help="tokens and checkpoints"
    )
    parser.add_argument("--minutes", type=float, default=68)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--matrix-rate", type=float, default=0.012, help="for short runs that look for the best")
    parser.add_argument("--other-rate", type=float, default=0.007)
    args = parser.parse_args()
    if not training_files(args.texts):
        parser.error(f"no training texts in {args.texts}; name the folder of the *.txt.xz")
    if args.batch_tokens < CONTEXT:
        parser.error(f"--batch-tokens must be at least {CONTEXT}, one window")
    return args


def config_of(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """Eight layers of width 256, with shared keys and values and a tied embedding: 6.9 million parameters."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


# -- text ------------------------------------------------------------------------------------------------------


def read(path: pathlib.Path) -> str:
    """The text of a compressed file."""
    return lzma.decompress(path.read_bytes()).decode()


def training_files(texts: pathlib.Path) -> list[pathlib.Path]:
    """The files to train on, in a fixed order."""
    return [path for name in TRAINING_TEXTS for path in sorted(texts.glob(f"{name}*.txt.xz"))]


def tokenizer_of(texts: pathlib.Path, work: pathlib.Path) -> PreTrainedTokenizerFast:
    """Byte-level pair encoding, learnt once from the texts."""
    file = work / "tokenizer.json"
    if not file.exists():
        learnt = Tokenizer(models.BPE())
        learnt.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        learnt.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        paragraphs = itertools.chain.from_iterable(read(path).split("\n\n") for path in training_files(texts))
        learnt.train_from_iterator(paragraphs, trainer)
        learnt.save(str(file))
    return PreTrainedTokenizerFast(
        tokenizer_file=str(file),
        bos_token=END,
        eos_token=END,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def tokens_of(texts: pathlib.Path, tokenizer: PreTrainedTokenizerFast, work: pathlib.Path) -> Ids:
    """All training texts as token ids, each file ended by the end token; kept in the work folder."""
    file = work / "tokens.npy"
    if not file.exists():
        encoder, parts = tokenizer.backend_tokenizer, []
        between = encoder.encode("\n\n").ids
        for path in training_files(texts):
            parts += [np.array(between + e.ids, np.uint16) for e in encoder.encode_batch(read(path).split("\n\n"))]
            parts.append(np.array([tokenizer.eos_token_id], np.uint16))
        np.save(file, np.concatenate(parts))
    tokens: Ids = np.load(file, mmap_mode="r")
    return tokens


def batches(tokens: Ids, batch_tokens: int, seed: int) -> Iterator[dict[int, Tensor]]:
    """Endless batches in windows of either length, passing over all tokens before any returns."""
    rng = np.random.default_rng(seed)
    while True:
        start = int(rng.integers(CONTEXT))
        windows = tokens[start : start + (len(tokens) - start) // CONTEXT * CONTEXT].reshape(-1, CONTEXT)
        for chosen in np.array_split(rng.permutation(len(windows)), len(windows) * CONTEXT // batch_tokens):
            batch = torch.from_numpy(windows[np.sort(chosen)].astype(np.int64))
            yield {SHORT: batch.reshape(-1, SHORT), CONTEXT: batch}


# -- training --------------------------------------------------------------------------------------------------


class Optimizers:
    """Muon for the matrices inside the layers, AdamW for the rest."""

    def __init__(self, network: LlamaForCausalLM, schedule: Schedule) -> None:
        named = list(network.named_parameters())
        matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name]
        others = [p for name, p in named if p.ndim != 2 or "embed" in name]
        self._rates = (schedule.matrix_rate, schedule.other_rate)
        self.each: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, schedule.matrix_rate, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, schedule.other_rate, betas=(0.9, 0.95), weight_decay=0.0),
        ]

    def step(self, scale: float) -> None:
        """One step at this share of the peak rates; the gradients are used up."""
        for optimizer, rate in zip(self.each, self._rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * scale
            optimizer.step()
            optimizer.zero_grad()


def fit(network: LlamaForCausalLM, tokens: Ids, schedule: Schedule, checkpoint: pathlib.Path) -> None:
    """Trains for so many seconds, those before an interruption included."""
    optimizers = Optimizers(network, schedule)
    spent, step = restore(network, optimizers, checkpoint)
    stream = batches(tokens, schedule.batch_tokens, SEED + step)
    network.train()
    losses: list[float] = []
    started, saved_at = time.perf_counter() - spent, spent
    while (spent := time.perf_counter() - started) < schedule.seconds:
        progress = spent / schedule.seconds
        losses.append(backward(network, next(stream)[CONTEXT if progress >= LONG_FROM else SHORT]))
        optimizers.step(rate_at(progress))
        step += 1
        if step % REPORT_STEPS == 0:
            seen = step * schedule.batch_tokens / 1e6
            loss = np.mean(losses[-REPORT_STEPS:])
            print(f"{spent / 60:6.1f} min, step {step}, {seen:.2f} M tokens, loss {loss:.4f}", flush=True)
        if spent - saved_at > CHECKPOINT_S:
            keep(network, optimizers, checkpoint, spent, step)
            saved_at = spent
    keep(network, optimizers, checkpoint, schedule.seconds, step)


def rate_at(progress: float) -> float:
    """Learning rate at a share of the time, as a share of its peak."""
    return min(1.0, progress / WARM_UP) if progress < DECAY_FROM else max(0.0, (1 - progress) / (1 - DECAY_FROM))


def backward(network: LlamaForCausalLM, batch: Tensor) -> float:
    """Gradients for a batch, clipped; returns the loss, in nats per token."""
    with torch.autocast("cpu", torch.bfloat16):
        hidden = network.model(input_ids=batch, use_cache=False).last_hidden_state
        logits = network.lm_head(hidden[:, :-1])
    loss = F.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    return loss.item()


def keep(network: LlamaForCausalLM, optimizers: Optimizers, file: pathlib.Path, spent: float, step: int) -> None:
    """Writes a checkpoint, whole or not at all."""
    state = {"network": network.state_dict(), "optimizers": [o.state_dict() for o in optimizers.each]}
    torch.save({**state, "spent": spent, "step": step}, file.with_suffix(".new"))
    file.with_suffix(".new").replace(file)


def restore(network: LlamaForCausalLM, optimizers: Optimizers, file: pathlib.Path) -> tuple[float, int]:
    """Goes back to a checkpoint, if there is one; returns the seconds spent and the steps taken."""
    if not file.exists():
        return 0.0, 0
    state = torch.load(file, weights_only=True)
    network.load_state_dict(state["network"])
    for optimizer, kept in zip(optimizers.each, state["optimizers"], strict=True):
        optimizer.load_state_dict(kept)
    return state["spent"], state["step"]


# -- the result ------------------------------------------------------------------------------------------------


def save(network: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: pathlib.Path) -> None:
    """A plain Hugging Face folder, weights in bfloat16; what else is in the folder stays."""
    network.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


def print_quality(folder: pathlib.Path, texts: pathlib.Path) -> None:
    """Bits per byte of the texts that were held out, in windows of the whole context."""
    network = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    for path in sorted(texts.glob("*_valid*.txt.xz")):
        ids = torch.tensor(tokenizer(read(path), verbose=False)["input_ids"])
        windows = ids[: len(ids) // CONTEXT * CONTEXT].view(-1, CONTEXT)
        bits = bits_per_byte(lambda ids: network(ids).logits, windows, tokenizer.decode)
        print(f"{path.name.removesuffix('.txt.xz')}: {bits:.4f} bits per byte", flush=True)


if __name__ == "__main__":
    main()
