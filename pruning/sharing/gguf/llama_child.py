"""Inside the reader's process: open a GGUF file with llama.cpp, tokenize texts and compute log-probabilities.

It reads a question as JSON from its standard input and prints the answer as JSON. The library of `xllamacpp` exports
llama.cpp's functions in C; its server computes no log-probabilities of a prompt. Nothing of Secateur is imported.
"""

import ctypes as c
import glob
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # Each thread takes address space, which is limited.
os.environ["GGML_NO_BACKTRACE"] = "1"  # So that the last line printed says which assertion failed.

LOG_ERROR = 4
LOG_CONTINUED = 5


class Batch(c.Structure):
    """`llama_batch`."""

    _fields_ = (
        ("n_tokens", c.c_int32),
        ("token", c.POINTER(c.c_int32)),
        ("embd", c.c_void_p),
        ("pos", c.POINTER(c.c_int32)),
        ("n_seq_id", c.POINTER(c.c_int32)),
        ("seq_id", c.POINTER(c.POINTER(c.c_int32))),
        ("logits", c.POINTER(c.c_int8)),
    )


class Parameters(c.Structure):
    """Parameters by value: as many bytes as any version has, of which only the first few are named.

    A function that returns them writes its own size, and one that takes them reads no more.
    """

    _fields_ = (("first", c.c_uint32 * 3), ("rest", c.c_uint8 * 1012))


LOG = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)
errors: list[str] = []


@LOG
def note(level: int, text: bytes, _data: object) -> None:
    """Keep what llama.cpp logs as an error."""
    if level == LOG_ERROR:
        errors.append(text.decode("utf-8", "replace").strip())


def open_library() -> c.CDLL:
    """Return llama.cpp's functions, with their types."""
    found = importlib.util.find_spec("xllamacpp")
    if found is None or found.origin is None:
        raise RuntimeError("xllamacpp is not installed")
    folder = Path(found.origin).parent
    library = c.CDLL(sorted(glob.glob(str(folder / "*.so")) + glob.glob(str(folder / "*.pyd")))[0])
    pointer, number = c.c_void_p, c.c_int32
    types = {
        "llama_log_set": (None, [LOG, pointer]),
        "llama_backend_init": (None, []),
        "llama_model_default_params": (Parameters, []),
        "llama_context_default_params": (Parameters, []),
        "llama_model_load_from_file": (pointer, [c.c_char_p, Parameters]),
        "llama_model_get_vocab": (pointer, [pointer]),
        "llama_model_n_ctx_train": (number, [pointer]),
        "llama_vocab_n_tokens": (number, [pointer]),
        "llama_init_from_model": (pointer, [pointer, Parameters]),
        "llama_set_n_threads": (None, [pointer, number, number]),
        "llama_batch_init": (Batch, [number, number, number]),
        "llama_decode": (number, [pointer, Batch]),
        "llama_get_logits_ith": (c.POINTER(c.c_float), [pointer, number]),
        "llama_free": (None, [pointer]),
        "llama_tokenize": (
            number,
            [pointer, c.c_char_p, number, c.POINTER(number), number, c.c_bool, c.c_bool],
        ),
    }
    for name, (result, arguments) in types.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    library.llama_log_set(note, None)
    library.llama_backend_init()
    return library


def tokenize(library: c.CDLL, vocabulary: int, text: str, special: bool) -> list[int]:
    """Return the ids of a text, with what begins and ends a text if `special`."""
    data = text.encode()
    room = len(data) + 16
    ids = (c.c_int32 * room)()
    count = library.llama_tokenize(vocabulary, data, len(data), ids, room, special, True)
    return list(ids[:count])


def log_probabilities(
    library: c.CDLL, model: int, tokens: int, prompt: dict[str, Any], threads: int
) -> list[list[float]]:
    """Return the log-probabilities of some tokens after some positions of a prompt."""
    import numpy as np

    ids, asked = prompt["ids"], prompt["asked"]
    parameters = library.llama_context_default_params()
    if list(parameters.first) != [512, 2048, 512]:
        raise RuntimeError("this version of llama.cpp has other parameters")
    parameters.first[:] = [len(ids) + 8] * 3  # The length of the text, of a batch, and of a part of a batch.
    context = library.llama_init_from_model(model, parameters)
    if not context:
        raise RuntimeError("llama.cpp could not begin a text")
    library.llama_set_n_threads(context, threads, threads)
    batch = library.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    wanted = {position for position, _ in asked}
    for place, number in enumerate(ids):
        batch.token[place], batch.pos[place] = number, place
        batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
        batch.logits[place] = place in wanted
    if library.llama_decode(context, batch):
        raise RuntimeError("llama.cpp could not read a text")
    answer = []
    for position, numbers in asked:
        logits = np.ctypeslib.as_array(library.llama_get_logits_ith(context, position), (tokens,)).astype(
            "f8"
        )
        top = logits.max()
        answer.append((logits[numbers] - top - np.log(np.exp(logits - top).sum())).tolist())
    library.llama_free(context)
    return answer


def main() -> None:
    """Answer the question."""
    question = json.load(sys.stdin)
    try:
        library = open_library()
        model = library.llama_model_load_from_file(
            question["file"].encode(), library.llama_model_default_params()
        )
        if not model:
            raise RuntimeError("it cannot be loaded")
        vocabulary = library.llama_model_get_vocab(model)
        tokens = library.llama_vocab_n_tokens(vocabulary)
        answer = {
            "vocabulary": tokens,
            "context": library.llama_model_n_ctx_train(model),
            "tokens": [tokenize(library, vocabulary, text, special) for text, special in question["texts"]],
            "log_probabilities": [
                log_probabilities(library, model, tokens, prompt, question["threads"])
                for prompt in question["prompts"]
            ],
        }
    except AttributeError:
        answer = {"error": "the installed xllamacpp is not the version that Secateur asks for", "log": []}
    except (RuntimeError, OSError, IndexError) as error:
        answer = {"error": str(error), "log": errors}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
