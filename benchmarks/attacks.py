"""The hostile inputs, by kind. A new one is a line of `INPUTS`, or a function with `@attack` above it.

Each gets an `Attacker`, does its worst, and returns what it was told. It raises `Leak` if it was given what
nobody should have. A hostile model is an entry of `attack_hub.models`; a line here names it.
"""

import asyncio
import io
import json
import re
import zipfile

from benchmarks.attack_hub import SECRET
from benchmarks.attacker import INPUTS, Act, Attacker, Input, Leak, attack, summary, together
from benchmarks.client import API, Client, told
from benchmarks.contained import busiest, kill, workers
from page.workers.pool import INTERACTIVE_NICENESS, LONG_NICENESS


def use(model: str, prompt: str = "A man walked AAA to the") -> Act:
    """Look a model up and prune it, on the page."""

    async def act(attacker: Attacker) -> str:
        await attacker.direct("show_shape", model=f"mallory/{model}")
        return told(await attacker.queued("prune", model=f"mallory/{model}", prompt=prompt, length=5))

    return act


def look(model: str, times: int = 1) -> Act:
    """Look a model up several times at the same time, as programs do."""

    async def act(attacker: Attacker) -> str:
        body = {"data": [f"mallory/{model}", 20, 0, 0, 0, ""]}
        calls = (attacker.http.post(f"{API}/run/preview", json=body) for _ in range(times))
        return await together(calls)

    return act


def recipe(*steps: dict[str, object], base: str = "smollm2-135m", times: int = 1, **values: object) -> Act:
    """Prune by a recipe, as a program does, or as several do at the same time."""
    text = json.dumps({"base": base, "steps": list(steps), **values})

    async def act(attacker: Attacker) -> str:
        if times > 1:
            return await together(attacker.api("prune", recipe=text) for _ in range(times))
        return told(await attacker.api("prune", recipe=text))

    return act


def distillation(**values: object) -> dict[str, object]:
    """Return a step that trains: one short step, with other values."""
    length = {} if "minutes" in values else {"steps": 1}
    return {"step": "distillation", **length, **values}


NEURONS: dict[str, object] = {"step": "neurons", "fraction": 0.2}
MANY = 10_000_000

INPUTS += [
    Input("training", "batch", recipe(distillation(batch=4096, micro_batch_size=1, window=8192))),
    Input("training", "window", recipe(distillation(batch=64, micro_batch_size=1, window=8192))),
    Input("training", "steps", recipe(NEURONS, distillation(steps=MANY))),
    Input("training", "evaluations", recipe(NEURONS, distillation(steps=10_000, num_evals=10_000, batch=1))),
    Input("training", "minutes", recipe(NEURONS, distillation(minutes=10_000))),
    Input("training", "many-steps", recipe(*[distillation(steps=50)] * 30)),
    Input("training", "twenty-steps", recipe(*[distillation(steps=50)] * 20, times=4)),
    Input("training", "samples", recipe(distillation(text="self_generated", samples=1_000_000))),
    Input("training", "calibration", recipe(NEURONS, calibration={"tokens": 1_000_000})),
    Input("training", "reconstruction", recipe(NEURONS, {"step": "reconstruction", "epochs": 100})),
    Input("memory", "micro-batch", recipe(distillation(batch=4096, micro_batch_size=4096, window=8192))),
    Input(
        "memory",
        "hidden-states",
        recipe(distillation(batch=48, micro_batch_size=48, window=2048, hidden_loss_weight=1)),
    ),
    Input(
        "memory",
        "embeddings",
        recipe(distillation(batch=16, micro_batch_size=16, window=1024, embeddings=True)),
    ),
    Input("memory", "teacher", recipe(distillation(teacher="Qwen/Qwen3-8B"))),
    Input("dataset", "parquet-bomb", recipe(distillation(dataset={"name": "mallory/bomb"}))),
    Input("dataset", "no-dataset", recipe(distillation(dataset={"name": "../../etc/passwd"}))),
    *(
        Input("tokenizer", name, use(name))
        for name in (
            "replace-bomb",
            "replace-chain",
            "replace-space",
            "quadratic",
            "exponential",
            "panic",
            "added-words",
        )
    ),
    *(
        Input("config", name, use(name))
        for name in (
            "many-layers",
            "countless-layers",
            "huge-vocabulary",
            "wrong-types",
            "not-numbers",
            "nested-config",
            "long-config",
        )
    ),
    *(
        Input("card", name, use(name))
        for name in ("license-bomb", "license-link", "heavy-yaml", "nested-yaml", "recipe-bomb")
    ),
    Input("generation", "many-beams", use("many-beams")),
    Input("generation", "odd-settings", use("odd-generation")),
    Input("code", "config", use("code-in-config")),
    Input("flood", "one-card", look("heavy-yaml", 40)),
    Input("flood", "many-layers", look("many-layers", 60)),
    Input("disk", "texts", look("texts", 4)),
]


@attack("code", "auto-map")
async def launder(attacker: Attacker) -> str:
    """Have the page save a model whose tokenizer brings code along."""
    said = told(await attacker.queued("prune", model="mallory/code", length=5))
    archive = await _download(attacker)
    if archive is None:
        return said
    with zipfile.ZipFile(io.BytesIO(archive)) as files:
        carriers = [
            name for name in files.namelist() if name.endswith(".json") and b"auto_map" in files.read(name)
        ]
    if carriers:
        raise Leak(f"{', '.join(carriers)} of the download names code")
    return f"{said} The download names no code."


async def _download(attacker: Client) -> bytes | None:
    """Return the pruned model of this session as a file; None if the page refuses."""
    answer = await attacker.queued("prepare")
    paths = re.findall(r'"path":\s*"([^"]+)"', answer)
    return (await attacker.http.get(f"{API}/file={paths[-1]}")).content if paths else None


@attack("disk", "exports")
async def fill_by_exports(attacker: Attacker) -> str:
    """Prepare downloads of the same model again and again, and of others."""
    answers = []
    for seed in (1, 1, 2):
        client = attacker.other()
        client.set("seed", seed)
        await client.prune_until_shown()
        answers += [await client.queued("prepare") for _ in range(2)]
    return summary(answers)


@attack("flood", "unknown-models")
async def look_up_what_does_not_exist(attacker: Attacker) -> str:
    """Ask for many models that do not exist, in as many sessions."""
    names = [f"mallory/nothing-{number}" for number in range(200)]
    return await together(attacker.other().direct("show_shape", model=name) for name in names)


@attack("flood", "slow-hub")
async def wait_for_the_hub(attacker: Attacker) -> str:
    """Ask for many models for which the Hub needs long."""
    names = [f"mallory/slow-{number}" for number in range(40)]
    return await together(attacker.other().direct("show_shape", model=name) for name in names)


@attack("flood", "sessions")
async def join_under_many_names(attacker: Attacker) -> str:
    """Start 600 sessions, and listen to none."""
    names = [f"flood-{number}" for number in range(600)]
    function = attacker.function("show_next_tokens")
    answers: list[object] = []
    for start in range(0, len(names), 50):
        bodies = [attacker.body(function) | {"session_hash": name} for name in names[start : start + 50]]
        calls = (attacker.http.post(f"{API}/queue/join", json=body) for body in bodies)
        answers += await asyncio.gather(*calls, return_exceptions=True)
    return summary(answers)


@attack("flood", "queue")
async def take_all_places(attacker: Attacker) -> str:
    """Press Prune in many sessions at the same time."""
    clients = [attacker.other() for _ in range(30)]
    for number, client in enumerate(clients):
        client.set("neurons-fraction", 10 + number)
    return await together(client.queued("prune") for client in clients)


@attack("flood", "programs")
async def call_as_many_programs(attacker: Attacker) -> str:
    """Send a hundred API calls at the same time."""
    return await together(attacker.api("prune", neurons=1 + number / 2) for number in range(100))


@attack("flood", "pages")
async def open_many_pages(attacker: Attacker) -> str:
    """Open the page three hundred times."""
    return await together(attacker.http.get("/") for _ in range(300))


@attack("text", "long-prompt")
async def prompt_at_length(attacker: Attacker) -> str:
    """Have a prompt of 400,000 characters continued."""
    return told(await attacker.queued("prune", prompt="的" * 400_000, length=200))


@attack("text", "next-words")
async def look_at_a_long_text(attacker: Attacker) -> str:
    """Ask for the next words after 20,000 characters, of four tokens each."""
    await attacker.prune_until_shown()
    return told(await attacker.queued("show_next_tokens", next_prompt="𓀀" * 20_000))


@attack("text", "losses")
async def measure_a_long_text(attacker: Attacker) -> str:
    """Ask for the loss on each token of 400,000 characters."""
    await attacker.prune_until_shown()
    return told(await attacker.queued("show_token_losses", loss_text="word " * 80_000))


@attack("text", "own-text")
async def calibrate_on_a_hostile_text(attacker: Attacker) -> str:
    """Calibrate on 200,000 characters that a slow pattern reads for minutes."""
    attacker.set("calibration", "custom")
    attacker.set("Your text", "the old man " * 16_600)
    return told(await attacker.queued("prune", model="mallory/quadratic", length=5))


@attack("text", "own-characters")
async def calibrate_on_odd_characters(attacker: Attacker) -> str:
    """Calibrate the default model on 200,000 characters without a space."""
    attacker.set("calibration", "custom")
    attacker.set("Your text", "ﷺ👩‍👩‍👧‍👦\u0301" * 20_000)
    return told(await attacker.queued("prune", length=5))


def body_of(values: str) -> Act:
    """Send ten calls at the same time, each with a text as its values."""

    async def act(attacker: Attacker) -> str:
        content = f'{{"data": {values}, "fn_index": 0, "session_hash": "bomb"}}'.encode()
        return await together(attacker.post(content) for _ in range(10))

    return act


async def send_slowly(attacker: Attacker) -> str:
    """Open 150 calls, and send one byte of each every second."""
    head = f"POST {API}/queue/join HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    writers = [(await attacker.connect())[1] for _ in range(150)]
    for writer in writers:
        writer.write(f"{head}Content-Length: 9000\r\n\r\n{{".encode())
    for _ in range(12):
        for writer in writers:
            writer.write(b" ")
        await asyncio.sleep(1)
    return (
        f"{sum(not writer.is_closing() for writer in writers)} of {len(writers)} calls still open after 12 s"
    )


async def never_read(attacker: Attacker) -> str:
    """Start twenty jobs, request their events and some large responses, and read none of them."""
    for number in range(20):
        client = attacker.other()
        client.set("neurons-fraction", 10 + number)
        await client.http.post(f"{API}/queue/join", json=client.body(client.function("prune")))
        _, writer = await attacker.connect()
        path = f"{API}/queue/data?session_hash={client.session}"
        writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    for _ in range(100):
        _, writer = await attacker.connect()
        writer.write(b"GET /config HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 5)
    await asyncio.sleep(10)
    return "nothing is read for 10 s"


async def paste_a_large_recipe(attacker: Attacker) -> str:
    """Paste 1,900,000 characters as a recipe, and send some in a link."""
    pasted = await attacker.direct("open_pasted_recipe", recipe_text="- [a, b]\n" * 210_000)
    link = await attacker.http.get(f"/?recipe={'e30' * 15_000}")
    return summary([pasted, link])


INPUTS += [
    Input("request", "empty-lists", body_of(f"[{','.join(['[]'] * 600_000)}]")),
    Input("request", "zeros", body_of(f"[{','.join('0' * 900_000)}]")),
    Input("request", "deep", body_of("[" * 900_000 + "]" * 900_000)),
    Input("request", "many-keys", body_of(json.dumps([{f"k{number}": number for number in range(90_000)}]))),
    Input("request", "slow-bodies", send_slowly),
    Input("request", "never-reads", never_read),
    Input("request", "recipe", paste_a_large_recipe),
]


def private_model(**headers: str) -> Act:
    """Ask for the shape of a private model of the page's owner, as a browser on another web site does."""

    async def act(attacker: Attacker) -> str:
        body = {"data": [SECRET, 20, 0, 0, 0, ""]}
        answer = await attacker.http.post(f"{API}/run/preview", json=body, headers=headers)
        call = attacker.body(attacker.function("show_shape"), model=SECRET)
        shown = await attacker.http.post(f"{API}/run/predict", json=call, headers=headers)
        if any(words in each.text for each, words in ((answer, '"before"'), (shown, "parameters-after"))):
            raise Leak("the shape of a private model")
        return summary([answer, shown])

    return act


INPUTS += [
    Input("other-site", "origin", private_model(Origin="https://evil.example", Cookie="access-token=a")),
    Input("other-site", "null-origin", private_model(Origin="null")),
    Input("other-site", "cross-site", private_model(**{"Sec-Fetch-Site": "cross-site"})),
    Input("other-site", "host", private_model(Host="rebind.evil.example:7860")),
    Input("other-site", "no-host", private_model(Host="")),
]


def kill_worker(*nicenesses: int) -> Act:
    """Kill the worker of a kind that works most, three times: what a fault of the machine would do."""

    async def act(attacker: Attacker) -> str:
        for _ in range(3):
            await asyncio.sleep(1.5)
            worker = await asyncio.to_thread(lambda: busiest(workers(attacker.page.process, nicenesses)))
            if worker is not None:
                kill(worker)
        return "three workers killed"

    return act


INPUTS += [
    Input("kill", "interactive", kill_worker(INTERACTIVE_NICENESS), retries=3),
    Input("kill", "long", kill_worker(LONG_NICENESS)),
    Input("kill", "look-up", kill_worker(0)),
]
