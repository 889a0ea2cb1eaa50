"""Train the bundled tokenizer and GPT-2 on the bundled corpus.

    python tests/benchmarks/bundled_model.py train              # about an hour on 2 CPU cores
    python tests/benchmarks/bundled_model.py judge              # held-out loss, and whether samples are on topic

`train` writes the model with the lowest held-out loss (float16 safetensors) and `training.json`. Every 20th document is
held out. The classifier that judges the samples is trained on the other documents.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import time
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from harvest.files import write_atomically
from harvest.sources import BUNDLED_CORPUS, BUNDLED_MODEL

CONTEXT = 128
VOCABULARY = 4096
END = "<|endoftext|>"
PROMPT_TOKENS = 48


def read_corpus() -> tuple[list[dict], list[dict]]:
    """The corpus as (training documents, held-out documents)."""
    with gzip.open(BUNDLED_CORPUS, "rt", encoding="utf-8") as lines:
        documents = [json.loads(line) for line in lines]
    return [d for i, d in enumerate(documents) if i % 20], documents[::20]


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=VOCABULARY, special_tokens=[END], show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer,
        bos_token=END,
        eos_token=END,
        unk_token=END,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def token_stream(tokenizer, documents: list[dict]) -> torch.Tensor:
    """The token ids of all documents, concatenated, with an end-of-text token before each document."""
    ids = [i for d in documents for i in [tokenizer.bos_token_id, *tokenizer(d["text"])["input_ids"]]]
    return torch.tensor(ids)


class Muon(torch.optim.Optimizer):
    """Momentum with updates that are orthogonalized by five Newton-Schulz steps (Jordan et al. 2024).

    torch.optim.Muon is the same rule, but multiplies in bfloat16, which is ten times slower on CPUs without it.
    """

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.1):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonalized(p.grad.lerp(buffer, group["momentum"]))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * max(1.0, p.shape[1] / p.shape[0]) ** 0.5)


def orthogonalized(g: torch.Tensor) -> torch.Tensor:
    x = g.T if g.shape[0] > g.shape[1] else g
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if g.shape[0] > g.shape[1] else x


@torch.inference_mode()
def held_out_loss(model: GPT2LMHeadModel, stream: torch.Tensor) -> float:
    """Mean cross-entropy over consecutive windows of CONTEXT tokens, in nats per token."""
    model.eval()
    windows = stream[: len(stream) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    losses = [model(batch, labels=batch).loss.item() * len(batch) for batch in windows.split(64)]
    model.train()
    return sum(losses) / len(windows)


def train(out: Path, epochs: float, batch: int, muon_lr: float, adam_lr: float, dropout: float, seed: int) -> None:
    torch.manual_seed(seed)
    training, held_out = read_corpus()
    tokenizer = train_tokenizer([d["text"] for d in training])
    stream, held_out_stream = token_stream(tokenizer, training), token_stream(tokenizer, held_out)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=CONTEXT,
            n_embd=256,
            n_layer=4,
            n_head=8,
            resid_pdrop=0.0,
            embd_pdrop=dropout,
            attn_pdrop=0.0,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    ).train()
    hidden = [p for p in model.transformer.h.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if all(p is not h for h in hidden)]
    optimizers = [Muon(hidden, lr=muon_lr), torch.optim.AdamW(others, lr=adam_lr, betas=(0.9, 0.99), weight_decay=0.0)]
    peaks = [muon_lr, adam_lr]

    windows_per_epoch = len(stream) // CONTEXT - 1
    steps_per_epoch = windows_per_epoch // batch
    total = int(epochs * steps_per_epoch)
    best, history, began = float("inf"), [], time.time()
    print(f"{len(stream):,} training tokens, {sum(p.numel() for p in model.parameters()):,} parameters, {total} steps")
    for step in range(total):
        torch.set_num_threads(len(os.sched_getaffinity(0)))  # `taskset` may change the cores
        if step % steps_per_epoch == 0:  # windows start at another token in each epoch
            shift = int(torch.randint(CONTEXT, ()))
            windows = stream[shift : shift + windows_per_epoch * CONTEXT].view(-1, CONTEXT)
            order = torch.randperm(windows_per_epoch)
        rows = order[step % steps_per_epoch * batch :][:batch]
        scale = min(1.0, (step + 1) / 60, (total - step) / (0.6 * total))
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * scale
        loss = model(windows[rows], labels=windows[rows]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if (step + 1) % 100 == 0 or step + 1 == total:
            held = held_out_loss(model, held_out_stream)
            minutes = (time.time() - began) / 60
            history.append({"step": step + 1, "loss": loss.item(), "held_out_loss": held, "minutes": minutes})
            print(
                f"step {step + 1}/{total}  loss {loss.item():.3f}  held-out {held:.3f}  {minutes:.1f} min", flush=True
            )
            if held < best:
                best = held
                save(model, tokenizer, out, {"held_out_loss": held, "minutes": minutes, "history": history})


def save(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, out: Path, record: dict) -> None:
    half = GPT2LMHeadModel(model.config)
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    write_atomically(out / "training.json", lambda file: file.write((json.dumps(record, indent=1) + "\n").encode()))


def judge(out: Path, samples: int, temperature: float, seed: int) -> None:
    """Continue the beginnings of held-out documents, and print how many stay on topic by a topic classifier.

    Three numbers are printed: whole samples with the same predicted topic as their prompt; continuations without their
    prompt that have the labelled topic of the document; and the same for the original continuations.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    torch.manual_seed(seed)
    training, held_out = read_corpus()
    model = GPT2LMHeadModel.from_pretrained(out, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(out)
    classifier = make_pipeline(TfidfVectorizer(sublinear_tf=True, stop_words="english"), LogisticRegression(C=30))
    classifier.fit([d["text"] for d in training], [d["topic"] for d in training])
    print(f"held-out loss {held_out_loss(model, token_stream(tokenizer, held_out)):.3f} nats per token")
    accuracy = classifier.score([d["text"] for d in held_out], [d["topic"] for d in held_out])
    print(f"classifier: correct for {accuracy:.0%} of whole held-out documents")

    documents = [(d["topic"], tokenizer(d["text"])["input_ids"]) for d in held_out]
    documents = [(topic, ids) for topic, ids in documents if len(ids) >= 2 * PROMPT_TOKENS][:samples]
    prompts = torch.tensor([[tokenizer.bos_token_id, *ids[:PROMPT_TOKENS]] for _, ids in documents])
    tokens = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        do_sample=True,
        temperature=temperature,
        max_new_tokens=CONTEXT - prompts.shape[1],
        pad_token_id=tokenizer.eos_token_id,
    )

    def agreement(texts, topics) -> str:
        return f"{sum(classifier.predict(texts) == topics)} of {len(texts)}"

    openings = [tokenizer.decode(ids[:PROMPT_TOKENS]) for _, ids in documents]
    continuations = [tokenizer.decode(t[prompts.shape[1] :], skip_special_tokens=True) for t in tokens]
    real = [tokenizer.decode(ids[PROMPT_TOKENS:CONTEXT]) for _, ids in documents]
    labels = [topic for topic, _ in documents]
    whole = [f"{opening}{continuation}" for opening, continuation in zip(openings, continuations, strict=True)]
    print(f"whole samples with the topic of their prompt: {agreement(whole, classifier.predict(openings))}")
    print(f"continuations with the topic of the document: {agreement(continuations, labels)}")
    print(f"original continuations with the topic of the document: {agreement(real, labels)}")
    for label, opening, continuation in list(zip(labels, openings, continuations, strict=True))[:6]:
        print(f"\n[{label}] {opening} || {continuation}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["train", "judge"])
    parser.add_argument("--out", type=Path, default=BUNDLED_MODEL)
    parser.add_argument("--epochs", type=float, default=7)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--adam-lr", type=float, default=0.004)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--temperature", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.task == "train":
        train(args.out, args.epochs, args.batch, args.muon_lr, args.adam_lr, args.dropout, args.seed)
    else:
        judge(args.out, args.samples, args.temperature, args.seed)


if __name__ == "__main__":
    main()
