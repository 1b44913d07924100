"""Train the tiny wav2vec2-CTC checkpoint that the tests recognize real words with.

Run by hand, never by the test suite: ``python tests/train_checkpoint.py OUT`` with ``espeak-ng`` on
the path. It speaks Swedish sentences of a small vocabulary with espeak-ng, trains a
one-million-parameter :class:`transformers.Wav2Vec2ForCTC` of the same kind as
``KBLab/wav2vec2-large-voxrex-swedish`` (layer-norm extractor, stable layer norm) until held-out
sentences come out right, and writes ``OUT/checkpoint`` (what ``tests/checkpoint`` holds) and
``OUT/clips`` (held-out sentences as FLAC, with their text in ``clips.json``).
"""

from __future__ import annotations

import argparse
import io
import json
import random
import subprocess
import time
import wave
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy
import soxr
import torch
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
)

WORDS = """hej jag du han hon vi kan ska vill kommer ringer hem bil båt tåg buss idag imorgon ikväll
klockan två tre fyra fem sex sju åtta nio tio möte läkare skola mat kaffe tack snälla till från på
med och inte snart nu här där stor liten röd blå hund katt mamma pappa brev telefon vatten fönster
bord sommar vinter""".split()  # noqa: SIM905
VOICES = ("sv", "sv+m1", "sv+m3", "sv+f2")
RATE = 16000
STEP_SECONDS = 40.0


def sentence(rng: random.Random) -> str:
    return " ".join(rng.sample(WORDS, rng.randint(2, 6)))


def speak(text: str, voice: str, speed: int, pitch: int) -> numpy.ndarray:
    """What espeak-ng says, float32 of shape (samples,) at 16 kHz."""
    said = subprocess.run(
        ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", text],
        check=True,
        capture_output=True,
    ).stdout
    with wave.open(io.BytesIO(said)) as reader:
        rate = reader.getframerate()
    # espeak-ng writes a placeholder length into the header of a piped WAV: the data starts at 44.
    samples = numpy.frombuffer(said[44 : len(said) // 2 * 2], "<i2")
    resampled: numpy.ndarray = soxr.resample(samples.astype(numpy.float32) / 32768, rate, RATE)
    return resampled


def speak_all(texts: list[str], rng: random.Random) -> list[numpy.ndarray]:
    how = [(t, rng.choice(VOICES), rng.randint(135, 190), rng.randint(35, 65)) for t in texts]
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda h: speak(*h), how))


def write_flac(path: Path, samples: numpy.ndarray) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("flac", rate=RATE, layout="mono")
        pcm = (samples.clip(-1, 1) * 32767).astype(numpy.int16)
        frame = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
        frame.sample_rate = RATE
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


def make_processor(folder: Path) -> Wav2Vec2Processor:
    letters = sorted({c for w in WORDS for c in w})
    vocabulary = {s: i for i, s in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *letters])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False, indent=1))
    return Wav2Vec2Processor(
        feature_extractor=Wav2Vec2FeatureExtractor(
            sampling_rate=RATE, do_normalize=True, return_attention_mask=True
        ),
        tokenizer=Wav2Vec2CTCTokenizer(str(folder / "vocab.json")),
    )


def make_model(vocabulary_size: int) -> Wav2Vec2ForCTC:
    return Wav2Vec2ForCTC(
        Wav2Vec2Config(
            vocab_size=vocabulary_size,
            hidden_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=512,
            conv_dim=(64,) * 7,
            conv_bias=True,
            feat_extract_norm="layer",
            do_stable_layer_norm=True,
            num_conv_pos_embeddings=32,
            num_conv_pos_embedding_groups=4,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            ctc_zero_infinity=True,
            ctc_loss_reduction="mean",
            apply_spec_augment=False,
            layerdrop=0.0,
            hidden_dropout=0.05,
            attention_dropout=0.0,
            activation_dropout=0.0,
            feat_proj_dropout=0.0,
            final_dropout=0.0,
        )
    )


def recording(
    speech: list[numpy.ndarray], texts: list[str], seconds: float, rng: random.Random
) -> tuple[numpy.ndarray, str]:
    """Sentences with pauses between them, at least one, until `seconds` are full."""
    parts: list[numpy.ndarray] = []
    said: list[str] = []
    length = 0.0
    while True:
        i = rng.randrange(len(texts))
        pause = numpy.zeros(int(RATE * rng.uniform(0.0, 0.6)), numpy.float32)
        length += (len(speech[i]) + len(pause)) / RATE
        if parts and length > seconds:
            break
        parts += [speech[i] * rng.uniform(0.5, 1.0), pause]
        said.append(texts[i])
    samples = numpy.concatenate(parts)
    noise = numpy.random.default_rng(rng.randrange(2**32)).standard_normal(len(samples))
    return samples + (rng.uniform(0, 0.003) * noise).astype(numpy.float32), " ".join(said)


def greedy(processor: Wav2Vec2Processor, model: Wav2Vec2ForCTC, samples: numpy.ndarray) -> str:
    inputs = processor(samples, sampling_rate=RATE, return_tensors="pt")
    with torch.inference_mode():
        ids = model(inputs.input_values).logits.argmax(-1)
    return str(processor.batch_decode(ids)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--sentences", type=int, default=3000)
    parser.add_argument("--bf16", action="store_true", help="autocast: for CPUs with AMX")
    options = parser.parse_args()

    rng = random.Random(20261123)
    torch.manual_seed(20261123)
    texts = [sentence(rng) for _ in range(options.sentences + 100)]
    speech = speak_all(texts, rng)
    held_texts, held_speech = texts[-100:], speech[-100:]
    texts, speech = texts[:-100], speech[:-100]

    processor = make_processor(options.out / "checkpoint")
    model = make_model(len(processor.tokenizer))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=options.steps)
    started = time.monotonic()
    for step in range(options.steps):
        # Mostly single sentences; later whole windows too, as the daemon's are 20 s and more.
        late = step > options.steps // 4
        seconds = rng.choice([0, 0, 0, 8, 26]) if late else 0
        size = 12 if seconds == 0 else max(1, int(STEP_SECONDS / seconds))
        batch = [recording(speech, texts, seconds, rng) for _ in range(size)]
        inputs = processor(
            [b[0] for b in batch], sampling_rate=RATE, padding=True, return_tensors="pt"
        )
        labels = processor.tokenizer([b[1] for b in batch], padding=True, return_tensors="pt")
        inputs["labels"] = labels.input_ids.masked_fill(labels.attention_mask == 0, -100)
        model.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
            loss = model(**inputs).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == options.steps - 1:
            model.eval()
            pairs = list(zip(held_texts, held_speech, strict=True))[:40]
            right = sum(greedy(processor, model, s) == t for t, s in pairs)
            print(
                f"{time.monotonic() - started:6.0f} s  step {step}  loss {loss.item():.4f}  "
                f"held-out sentences right {right}/{len(pairs)}",
                flush=True,
            )
            model.save_pretrained(options.out / "checkpoint")
            processor.save_pretrained(options.out / "checkpoint")

    model.eval()
    clips = options.out / "clips"
    clips.mkdir(parents=True, exist_ok=True)
    kept: dict[str, str] = {}
    for text, samples in zip(held_texts, held_speech, strict=True):
        if greedy(processor, model, samples) == text and len(kept) < 12:
            name = f"{len(kept) + 1:02d}.flac"
            write_flac(clips / name, samples)
            kept[name] = text
    (clips / "clips.json").write_text(json.dumps(kept, ensure_ascii=False, indent=1) + "\n")
    right = sum(
        greedy(processor, model, s) == t for t, s in zip(held_texts, held_speech, strict=True)
    )
    long_samples, long_text = recording(held_speech, held_texts, 60, rng)
    same = greedy(processor, model, long_samples) == long_text
    print(f"held-out sentences right {right}/{len(held_texts)}; one minute right: {same}")


if __name__ == "__main__":
    main()
