"""Train a small language model on the source text of Python's standard library and export it to this folder.

    pip install .[training]
    python models/train_text.py            # writes text-llama.onnx and text.npz, and prints the row of the README table
    python models/train_text.py --steps 50 --output DIR

A token is a byte. Every tenth module is held out: the test windows come from those alone and choose nothing. Fixed seeds give
the same weights again on the same machine, Python release, PyTorch release and number of threads.
"""

import argparse
import sysconfig
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn import functional

FOLDER = Path(__file__).resolve().parent
SEED = 0
VOCABULARY, WINDOW = 256, 128  # bytes; tokens that a prediction looks back at in training
BATCH, LEARNING_RATE = 32, 4e-3
TOLERANCE = 1e-3  # largest difference of a logit between PyTorch and ONNX Runtime


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2)) * weight over the last axis, written out as Llama's exports have it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (Su et al., arXiv 2104.09864): channel i pairs with channel i + half; x is (n, heads, tokens, size)."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


class Block(nn.Module):
    """x + attention(norm(x)) with fewer key and value heads than query heads, then x + down(silu(gate) * up)."""

    def __init__(self, width: int, heads: int, shared: int, hidden: int) -> None:
        super().__init__()
        self.heads, self.shared, self.size = heads, shared, width // heads
        self.norm1, self.norm2 = RMSNorm(width), RMSNorm(width)
        self.query, self.output = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.key, self.value = (nn.Linear(width, shared * self.size, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        n, tokens, width = x.shape
        y = self.norm1(x)
        query, key, value = (
            layer(y).reshape(n, tokens, heads, self.size).transpose(1, 2)
            for layer, heads in ((self.query, self.heads), (self.key, self.shared), (self.value, self.shared))
        )
        query, key = rotated(query, cos, sin), rotated(key, cos, sin)
        key, value = (
            part[:, :, None].expand(n, self.shared, self.heads // self.shared, tokens, self.size).reshape(query.shape)
            for part in (key, value)
        )
        scores = query @ key.transpose(-2, -1) * self.size**-0.5 + mask
        x = x + self.output((scores.softmax(-1) @ value).transpose(1, 2).reshape(n, tokens, width))
        y = self.norm2(x)
        return x + self.down(functional.silu(self.gate(y)) * self.up(y))


class LanguageModel(nn.Module):
    """Tokens (n, tokens) -> logits of the next token (n, tokens, 256)."""

    def __init__(self, width: int = 96, heads: int = 4, shared: int = 2, hidden: int = 256, depth: int = 4) -> None:
        super().__init__()
        self.embedding, self.size = nn.Embedding(VOCABULARY, width), width // heads
        self.blocks = nn.ModuleList([Block(width, heads, shared, hidden) for _ in range(depth)])
        self.norm, self.head = RMSNorm(width), nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], dtype=torch.float32)
        angles = positions[:, None] * 10_000 ** (-torch.arange(0, self.size, 2) / self.size)
        angles = torch.cat([angles, angles], -1)
        mask = torch.where(positions[None, :] > positions[:, None], -1e4, 0.0)
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, angles.cos(), angles.sin(), mask)
        return self.head(self.norm(x))


def windows(texts: list[bytes], count: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """(count, length) bytes, each window from a place drawn evenly from all the text."""
    text = np.frombuffer(b"\n".join(texts), np.uint8)
    return text[rng.integers(0, len(text) - length, count)[:, None] + np.arange(length)]


def loss_of(logits: Tensor, tokens: Tensor) -> Tensor:
    """Mean cross entropy of each window's next bytes, in nats; tokens has one more than logits."""
    return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def train(model: LanguageModel, texts: list[bytes], steps: int) -> None:
    """AdamW, one-cycle learning rate."""
    rng = np.random.default_rng(SEED)
    optimiser = torch.optim.AdamW(model.parameters(), LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        tokens = torch.from_numpy(windows(texts, BATCH, WINDOW + 1, rng).astype(np.int64))
        loss = loss_of(model(tokens[:, :-1]), tokens)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 50 == 0:
            print(f"step {step} of {steps}: {loss.item():.3f} nats a byte", flush=True)


def export(model: LanguageModel, path: Path, tokens: np.ndarray) -> None:
    """Write the model, free in batch and length, and compare ONNX Runtime with PyTorch."""
    example = torch.from_numpy(tokens[:2, :-1].astype(np.int64))
    names: dict[str, Any] = {"input_names": ["tokens"], "output_names": ["logits"]}
    names["dynamic_axes"] = {name: {0: "batch", 1: "length"} for name in ("tokens", "logits")}
    torch.onnx.export(model, (example,), str(path), opset_version=17, dynamo=False, **names)
    shorter = example[:, :77]
    with torch.no_grad():
        for given in (example, shorter):
            found = onnxruntime.InferenceSession(str(path)).run(None, {"tokens": given.numpy()})[0]
            assert np.abs(found - model(given).numpy()).max() < TOLERANCE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--output", type=Path, default=FOLDER)
    given = parser.parse_args()
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    texts = [module.read_bytes() for module in modules]
    held_out = texts[::10]
    training = [text for number, text in enumerate(texts) if number % 10]
    model, began = LanguageModel(), time.process_time()
    train(model, training, given.steps)
    model.eval()
    rng = np.random.default_rng(SEED + 1)
    test, calibration = windows(held_out, 300, WINDOW + 1, rng), windows(training, 200, WINDOW + 1, rng)
    with torch.no_grad():
        tokens = torch.from_numpy(test.astype(np.int64))
        logits = model(tokens[:, :-1])
    loss, hits = float(loss_of(logits, tokens)), float((logits.argmax(-1) == tokens[:, 1:]).float().mean())
    export(model, given.output / "text-llama.onnx", test)
    np.savez_compressed(given.output / "text.npz", test=test, calibration=calibration)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    size, minutes = (given.output / "text-llama.onnx").stat().st_size, (time.process_time() - began) / 60
    found = f"{loss:.4f} nats a byte, {100 * hits:.2f} % of the next bytes"
    print(f"{parameters:,} parameters, {size:,} bytes, {found}, {minutes:.1f} CPU minutes")


if __name__ == "__main__":
    main()
