"""Finding a model: a directory, the Hub (its cache first), or the embedded one.

Imports neither torch nor transformers nor ctranslate2, so that a problem is known in a moment.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar

from transcribed.errors import ModelUnavailable
from transcribed.recognition import Model
from transcribed.speech import converted, embedded

MISSION = "KBLab/wav2vec2-large-voxrex-swedish"
WHISPER_TOKENS_ENGLISH_ONLY = 51864  # of the ``.en`` checkpoints; the multilingual ones have more

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LANGUAGE_TOKEN = re.compile(r"<\|([a-z]{2,3})\|>")
_ADAPTER = re.compile(r"adapter\.(.+)\.safetensors")
_SHARD = re.compile(r"(model-\d+-of-\d+\.safetensors|pytorch_model-\d+-of-\d+\.bin)")
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_FEATURES = ("preprocessor_config.json", "processor_config.json")
_CTC_FILES = (
    "config.json",
    *_FEATURES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
)
_VOCABULARIES = ("vocabulary.json", "vocabulary.txt")
_WHISPER_FILES = ("config.json", "preprocessor_config.json", "tokenizer.json", *_VOCABULARIES)

# Seconds until the Hub counts as out of reach: for each step of one request, and for all of it, as
# the operating system's name resolution knows no timeout of ours.
HUB_STEP = 5.0
HUB_TOTAL = 12.0

_EDGE = 1 << 16  # bytes of each end of a large file that its digest is made of

T = TypeVar("T")


def resolve(asked: str, cache_dir: str, dtype: str = "auto") -> Model:
    """The model that `asked` stands for, ready to be loaded: see :func:`find`.

    A wav2vec2 checkpoint is converted, if it was not yet.

    :param dtype: what wav2vec2 computes in; see :data:`transcribed.recognition.DTYPES`.
    :raises ModelUnavailable: with a sentence that says why.
    """
    model = find(asked, cache_dir)
    if model.kind != "ctc":
        return model
    if converted.supported(_read_json(Path(model.path) / "config.json")):
        return converted.find(model, Path(cache_dir), dtype)
    if model.languages is not None:
        raise ModelUnavailable(f"{model.name} has many languages and is no Wav2Vec2ForCTC")
    return model


def find(asked: str, cache_dir: str) -> Model:
    """The model that `asked` stands for, with its files on this machine.

    :param asked: a directory; a Hub name (``owner/name``), looked for in the Hub's cache, without
        any network, before it is fetched; ``embedded``; or ``auto``, which is :data:`MISSION`
        from the Hub or else, with a warning, the embedded one.
    :param cache_dir: where the embedded model is unpacked and wav2vec2 checkpoints are converted.
        (The Hub's cache is its library's own.)
    :raises ModelUnavailable: with a sentence that says why.
    """
    if asked == "embedded":
        return _embedded(cache_dir, None)
    if asked == "auto":
        try:
            return _from_hub(MISSION)
        except ModelUnavailable as e:
            return _embedded(
                cache_dir,
                f"{e}: the small embedded Whisper base is used instead",
            )
    directory = Path(asked).expanduser()
    if directory.is_dir():
        return inspect(asked, directory)
    if _HUB_NAME.fullmatch(asked):
        return _from_hub(asked)
    raise ModelUnavailable(f"there is no directory {asked}")


def inspect(name: str, directory: Path) -> Model:
    """What the files in `directory` are; raises :exc:`ModelUnavailable` when not a usable model."""
    config = _read_json(directory / "config.json")
    architectures = config.get("architectures") if isinstance(config, dict) else None
    if not isinstance(architectures, list):
        architectures = []
    if any(str(a).endswith("ForCTC") for a in architectures):
        return _inspect_ctc(name, directory)
    if (directory / "model.bin").is_file():
        return _inspect_whisper(name, directory)
    if not architectures:
        raise ModelUnavailable(f"{directory} holds no model: its config.json names no architecture")
    what = ", ".join(map(str, architectures))
    if any("Whisper" in str(a) for a in architectures):
        what += " that is not in CTranslate2 format"
    raise ModelUnavailable(f"{directory} holds a {what}: only *ForCTC and CTranslate2 Whisper work")


def _embedded(cache_dir: str, warning: str | None) -> Model:
    directory = embedded.unpack(Path(cache_dir))
    size = (directory / "model.bin").stat().st_size
    # The bytes were just checked, so their sum is the digest: the same on every machine.
    return _whisper("embedded", directory, embedded.SHA256, size, warning)


def _inspect_whisper(name: str, directory: Path) -> Model:
    if not (directory / "tokenizer.json").is_file():
        raise ModelUnavailable(f"{directory} has no tokenizer.json")
    if not any((directory / v).is_file() for v in _VOCABULARIES):
        raise ModelUnavailable(f"{directory} has no vocabulary.json or vocabulary.txt")
    weights = [directory / "model.bin"]
    small = [directory / f for f in _WHISPER_FILES]
    return _whisper(name, directory, _digest(small, weights), weights[0].stat().st_size, None)


def _whisper(name: str, directory: Path, digest: str, size: int, warning: str | None) -> Model:
    languages = _whisper_languages(directory)
    return Model(name, str(directory), "whisper", digest, size, languages, 24, 3, warning)


def _whisper_languages(directory: Path) -> tuple[str, ...]:
    tokenizer = _read_json(directory / "tokenizer.json")
    try:
        tokens = [str(token["content"]) for token in tokenizer["added_tokens"]]
    except (KeyError, TypeError) as e:
        raise ModelUnavailable(f"{directory}/tokenizer.json is not a tokenizer's") from e
    if "<|startoftranscript|>" not in tokens:
        raise ModelUnavailable(f"{directory} holds a CTranslate2 model that is not a Whisper")
    # English-only checkpoints carry all the language tokens too: CTranslate2 tells them by their
    # size (src/models/whisper.cc, is_multilingual), and so does this.
    listed = directory / "vocabulary.json"
    if listed.is_file():
        size = len(_read_json(listed))
    else:
        with (directory / "vocabulary.txt").open("rb") as file:
            size = sum(1 for _ in file)
    if size == WHISPER_TOKENS_ENGLISH_ONLY:
        return ("en",)
    return tuple(sorted(m[1] for m in map(_LANGUAGE_TOKEN.fullmatch, tokens) if m))


def _inspect_ctc(name: str, directory: Path) -> Model:
    weights = ctc_weights(directory)
    if not (directory / "vocab.json").is_file():
        raise ModelUnavailable(f"{directory} has no vocab.json")
    if not any((directory / f).is_file() for f in _FEATURES):
        raise ModelUnavailable(f"{directory} has no preprocessor_config.json")
    vocabulary = _read_json(directory / "vocab.json")
    if not isinstance(vocabulary, dict) or not vocabulary:
        raise ModelUnavailable(f"{directory}/vocab.json is not a vocabulary")
    languages = None
    small = [directory / f for f in _CTC_FILES]
    if any(isinstance(v, dict) for v in vocabulary.values()):
        # MMS (transformers' docs/model_doc/mms): a vocabulary and an adapter for each language.
        adapters = {
            m[1]: f for f in directory.iterdir() if (m := _ADAPTER.fullmatch(f.name)) is not None
        }
        languages = tuple(sorted(vocabulary.keys() & adapters.keys()))
        if not languages:
            raise ModelUnavailable(f"{directory} has no adapter.*.safetensors for its languages")
        small += [adapters[language] for language in languages]
    digest = _digest(small, weights)
    size = sum(f.stat().st_size for f in weights)
    return Model(name, str(directory), "ctc", digest, size, languages, 20, 3)


def ctc_weights(directory: Path) -> list[Path]:
    """The files that hold a checkpoint's weights; raises :exc:`ModelUnavailable`."""
    for name in _WEIGHTS:
        file = directory / name
        if not file.is_file():
            continue
        if not name.endswith(".index.json"):
            return [file]
        index = _read_json(file)
        shards = [directory / str(s) for s in sorted(set(index.get("weight_map", {}).values()))]
        for shard in shards:
            if not shard.is_file():
                raise ModelUnavailable(f"{directory} has no {shard.name}")
        if shards:
            return shards
    raise ModelUnavailable(f"{directory} has no weights (model.safetensors or pytorch_model.bin)")


def _digest(small: Iterable[Path], weights: Iterable[Path]) -> str:
    """A sum that differs wherever the files may.

    Summing 1.2 GB of weights would take seconds at each start. A file in the Hub's cache is a link
    to a blob that is named by the sum of its content; of any other, its size, its time of
    modification and its ends stand for it. A copied directory may thus count as another model,
    which costs some windows being done again; weights that were trained on or replaced never count
    as the same.
    """
    digest = hashlib.sha256()
    for file in [*small, *weights]:
        if not file.is_file():
            continue
        blob = file.resolve()
        stat = blob.stat()
        digest.update(f"{file.name}\0{stat.st_size}\0".encode())
        if blob.parent.name == "blobs" and file.is_symlink():
            digest.update(blob.name.encode())
        elif stat.st_size < 64 * _EDGE:
            digest.update(blob.read_bytes())
        else:
            digest.update(str(stat.st_mtime_ns).encode())
            with blob.open("rb") as opened:
                digest.update(opened.read(_EDGE))
                opened.seek(-_EDGE, 2)
                digest.update(opened.read())
    return digest.hexdigest()


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as e:
        raise ModelUnavailable(f"{path.parent} has no {path.name}") from e
    except OSError as e:
        raise ModelUnavailable(f"{path} cannot be read: {e.strerror}") from e
    except ValueError as e:
        raise ModelUnavailable(f"{path} is not JSON") from e


def _from_hub(name: str) -> Model:
    # Its import takes a moment too, and a directory or the embedded model has no use for it.
    import huggingface_hub

    cached = huggingface_hub.try_to_load_from_cache(name, "config.json")
    if isinstance(cached, str):
        try:
            return inspect(name, Path(cached).parent)
        except ModelUnavailable:
            pass  # A download that was broken off, by us or another program: go on with it.
    return inspect(name, _download(name))


def _download(name: str) -> Path:
    """Fetch the files that are needed, the small ones first; the snapshot's directory."""
    import huggingface_hub
    from huggingface_hub import errors, utils

    utils.disable_progress_bars()
    try:
        # One request that is not repeated: downloads are, for half a minute, when nobody answers.
        info = _within(
            HUB_TOTAL, lambda: huggingface_hub.HfApi().model_info(name, timeout=HUB_STEP)
        )
        wanted = needed(file.rfilename for file in info.siblings or ())
        if not wanted:
            raise ModelUnavailable(
                f"{name} on the Hub holds no *ForCTC or CTranslate2 Whisper model"
            )
        folders = []
        for file in wanted:
            folders.append(Path(huggingface_hub.hf_hub_download(name, file)).parent)
            if file == "config.json" and "model.bin" not in wanted:
                _refuse_other(name, folders[0])
    except errors.GatedRepoError as e:
        raise ModelUnavailable(
            f"{name} on the Hub is given out on conditions: accept them and set HF_TOKEN"
        ) from e
    except errors.RepositoryNotFoundError as e:
        raise ModelUnavailable(f"there is no public model {name} on the Hub") from e
    except errors.HfHubHTTPError as e:
        raise ModelUnavailable(f"the Hub answered {e.response.status_code} for {name}") from e
    except errors.OfflineModeIsEnabled as e:
        raise ModelUnavailable(
            f"{name} is not in the Hub's cache, and HF_HUB_OFFLINE is set"
        ) from e
    except errors.HFValidationError as e:
        raise ModelUnavailable(f"{name} is no name of a model on the Hub") from e
    except ModelUnavailable:
        raise
    except Exception as e:
        # httpx's errors, a timeout, a full disk: the library does not wrap what it meets.
        detail = f"{type(e).__name__}: {e}".splitlines()[0][:200]
        raise ModelUnavailable(f"{name} cannot be fetched from the Hub ({detail})") from e
    if len(set(folders)) != 1:
        raise ModelUnavailable(f"{name} changed on the Hub while it was fetched")
    return folders[0]


def needed(names: Iterable[str]) -> list[str]:
    """Which of the files of a Hub repository a recognizer needs: small ones first, weights last.

    Empty when they are not those of a model that can be used. Repositories also hold the same
    weights for other libraries, which would multiply the download.
    """
    names = sorted(names)
    if "model.bin" in names and any(v in names for v in _VOCABULARIES):
        return [f for f in (*_WHISPER_FILES, "model.bin") if f in names]
    if "config.json" not in names:
        return []
    weights = next((w for w in _WEIGHTS if w in names), None)
    if weights is None:
        return []
    chosen = [f for f in _CTC_FILES if f in names]
    chosen += [f for f in names if _ADAPTER.fullmatch(f)]
    if weights.endswith(".index.json"):
        suffix = weights.removesuffix(".index.json").rpartition(".")[2]
        chosen += [f for f in names if _SHARD.fullmatch(f) and f.endswith(suffix)]
    return [*chosen, weights]


def _refuse_other(name: str, folder: Path) -> None:
    """Before gigabytes of weights are fetched: is it a CTC model at all?"""
    architectures = _read_json(folder / "config.json").get("architectures") or []
    if not any(str(a).endswith("ForCTC") for a in architectures):
        what = ", ".join(map(str, architectures)) or "no architecture"
        raise ModelUnavailable(
            f"{name} on the Hub is {what}: only *ForCTC and CTranslate2 Whisper work"
        )


def _within(seconds: float, call: Callable[[], T]) -> T:
    """What `call` returns or raises, or TimeoutError after `seconds` (it then goes on unheard)."""
    outcome: list[tuple[Literal[True], T] | tuple[Literal[False], BaseException]] = []

    def work() -> None:
        try:
            outcome.append((True, call()))
        except BaseException as e:
            outcome.append((False, e))

    thread = threading.Thread(target=work, daemon=True, name="hub")
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError(f"no answer within {seconds:.0f} seconds")
    done = outcome[0]
    if done[0]:
        return done[1]
    raise done[1]
