"""``selftrain agents``: vLLM servers for the agents started and checked, and what agents are asked."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, NamedTuple

import typer

from agents.errors import ServerLaunchError
from agents.vllm.command import Device
from selftrain._util.deferred import deferred
from selftrain._util.printable import printable
from selftrain.cli import options
from selftrain.cli.commands import noun
from selftrain.cli.options import KEY_VARIABLE, argument, grouped, option, several, written
from selftrain.cli.printing import echo, print_json
from selftrain.errors import RecipeError

with deferred():
    from agents.client import endpoints
    from agents.vllm import check as checking
    from agents.vllm import command as vllm_command
    from agents.vllm import interpreter, launch, memory
    from selftrain import config, panels
    from selftrain.data import task as tasks
    from selftrain.report import prompt_preview

app = noun("Start or check the vLLM servers of the agents, show their prompts.")

LISTENING, CAPACITY, HARDWARE = "Who reaches it", "How much at once", "What it runs on"


class Serving(NamedTuple):
    """How a model is served: the options of `agents.vllm.command.ServeOptions`."""

    name: Annotated[
        str, option("Served under this name; by default MODEL's last part.", show_default=False)
    ] = ""
    host: options.Host = "127.0.0.1"
    allow_remote: Annotated[
        bool, option("Let --host be an address that other machines reach.", "--allow-remote", panel=LISTENING)
    ] = False
    port: Annotated[int, option("0: one that is free.", panel=LISTENING)] = 8000
    images: Annotated[
        int | None,
        option(
            "Most images of one prompt, 0-16; by default 16 if it takes any.", metavar="N", panel=CAPACITY
        ),
    ] = None
    max_model_len: Annotated[
        int | None,
        option(
            "Tokens of prompt and answer; by default as many as fit, up to the model's.",
            metavar="N", panel=CAPACITY,
        ),
    ] = None  # fmt: skip
    max_num_seqs: Annotated[
        int | None, option("Most requests at the same time; by default vLLM's.", metavar="N", panel=CAPACITY)
    ] = None
    dtype: Annotated[
        str,
        option(
            "Of weights and activations; auto: on the CPU the faster one, else the model's.", panel=HARDWARE
        ),
    ] = "auto"
    device: Annotated[Device, option("auto: what vLLM was built for.", panel=HARDWARE)] = "auto"
    tensor_parallel: Annotated[int, option("GPUs that share each layer.", metavar="N", panel=HARDWARE)] = 1
    data_parallel: Annotated[int, option("Copies of the model.", metavar="N", panel=HARDWARE)] = 1
    api_servers: Annotated[
        int | None, option("Processes that take requests, for small models.", metavar="N", panel=HARDWARE)
    ] = None
    gpu_memory: Annotated[
        float | None,
        option("Share of each GPU's memory, 0-1; by default vLLM's.", metavar="SHARE", panel=HARDWARE),
    ] = None
    kv_cache_gib: Annotated[int, option("Memory for the cache on the CPU.", metavar="N", panel=HARDWARE)] = 1


@app.command(
    epilog="Example: selftrain agents serve llava-hf/llava-onevision-qwen2-7b-ov-hf --port 8000 --"
    " --max-num-batched-tokens 8192"
)
@grouped
def serve(
    model: Annotated[str, argument("MODEL", "A folder, or ORGANISATION/NAME on the Hugging Face hub.")],
    flags: Annotated[
        list[str] | None, argument("-- FLAGS", "Flags of vLLM, after --: passed on as they are.")
    ] = None,
    *,
    adapter: Annotated[
        list[str], several("A LoRA adapter; may be given several times.", "--adapter", metavar="NAME=FOLDER")
    ],
    log: Annotated[
        Path | None, written("Add the server's output to FILE; by default a temporary one.")
    ] = None,
    time_limit: Annotated[
        float, option("Seconds without progress until it is given up.", metavar="S")
    ] = 900.0,
    serving: Serving,
    python: Annotated[
        Path | None,
        option(
            "The Python that has vLLM; by default SELFTRAIN_VLLM_PYTHON, else .venv-vllm.", panel=HARDWARE
        ),
    ] = None,
) -> None:
    """Start a vLLM server for the agents on this machine, until Ctrl-C.

    Prints every stage, then the lines of a recipe that use it. Ctrl-C or SIGTERM ends the server and
    everything that it started (exit status 0); a server that cannot be started, or ends by itself, is exit
    status 2. What stands after -- is passed on to vLLM. While weights are downloaded or read, or the log goes
    on, it is waited for. A key that callers must show is taken from SELFTRAIN_API_KEY, never from the command
    line. A model that was trained here is served by another command: `selftrain serve`.
    """
    if flags and not flags[0].startswith("-"):
        raise typer.BadParameter(f"{flags[0]!r} follows MODEL: what is meant for vLLM stands after --")
    asked = vllm_command.ServeOptions(
        **serving._asdict(), adapters=_adapters(adapter), api_key=_key_in(KEY_VARIABLE), extra=flags or (),
    )  # fmt: skip
    command = vllm_command.serve_command(interpreter.find_interpreter(python), model, asked)
    if serving.allow_remote and not command.api_key:
        echo(f"note: whoever reaches {serving.host} may use this server: set {KEY_VARIABLE} to ask for a key")
    with _ended_by_signals():
        try:
            with launch.serving(command, log=log, seconds=time_limit, report=echo) as (server, ready):
                echo(
                    f"ready: {ready.endpoint} model {ready.model} ({ready.server}), context {ready.context},"
                    f" images {ready.images}"
                )
                echo(_recipe_lines(server, ready))
                server.wait()
        except KeyboardInterrupt:
            echo("stopped")


@app.command(epilog="Example: selftrain agents check http://127.0.0.1:8000")
def check(
    servers: Annotated[list[str], argument("URL", "For instance http://127.0.0.1:8000.")],
    model: Annotated[
        str, option("The name that must be served; by default the only one that is.", show_default=False)
    ] = "",
    text_only: Annotated[bool, option("Ask about a text: the model takes no images.", "--text-only")] = False,
    key_variable: Annotated[
        str, option("Environment variable of the key to show.", metavar="NAME")
    ] = KEY_VARIABLE,
    time_limit: Annotated[float, option("Seconds for the answer.", metavar="S")] = 120.0,
) -> int:
    """See whether servers can do what the agents need.

    Whether they are alive, what they serve, and whether one constrained answer about a picture comes back as
    the agents need it. Exit status 1 if one cannot be used.
    """
    key, failed = _key_in(key_variable), False
    for endpoint in map(endpoints.plain_endpoint, servers):
        echo(endpoint)
        for found in checking.check_server(
            endpoint, model=model, key=key, image=not text_only, seconds=time_limit
        ):
            echo(f"  {found.what:<8}{'ok' if found.passed else 'FAILED':<8}{found.detail}")
            failed |= not found.passed
    return 1 if failed else 0


@app.command(epilog="Example: selftrain agents prompts recipe.toml --post 17 --only reviewer.first")
def prompts(
    recipe_file: options.Recipe,
    overrides: options.Overrides,
    post: Annotated[
        str | None, option("Id of a post; by default the manifest's first.", metavar="ID")
    ] = None,
    only: Annotated[str | None, option("One prompt, for instance reviewer.first.", metavar="NAME")] = None,
    as_json: Annotated[bool, option("Requests as JSON lines, pictures by their hash.", "--json")] = False,
) -> None:
    """Show what vision-language agents are asked about a post.

    Every prompt of the recipe's protocol, filled for one post; no model is asked.
    """
    recipe = config.load_recipe(recipe_file, overrides)
    task = tasks.load_task(recipe.data.task)
    opening = panels.opener(recipe.data.max_image_pixels)
    agent = panels.VLMPanel(**dict(recipe.vlm)).agent(panels.brief_of(task), recipe.seed)
    shown = prompt_preview.previews(recipe, task, agent, opening, post)
    names = [preview.template for preview in shown]
    if only is not None and only not in names:
        raise RecipeError(f"no prompt is named {only!r}; this protocol has {names}: choose one of them")
    for preview in shown:
        if only not in (None, preview.template):
            continue
        if as_json:
            print_json({"prompt": preview.template, **preview.request.to_json()})
            continue
        echo(f"=== {preview.template} ===")
        for line in preview.lines():
            print(printable(line))
        echo(f"--- answer: {json.dumps(preview.request.schema)}\n")


def _key_in(variable: str) -> str:
    """Return the key in a variable as it is shown to servers, without blanks around it; empty: none."""
    key = endpoints.Key(variable)
    return key.reveal() if key.given else ""


def _recipe_lines(server: launch.Server, ready: launch.Ready) -> str:
    """Return the lines of a recipe that use the server."""
    command = server.command
    lines = ["", "[agents]", 'kind = "vlm"', "", "[vlm]", f"servers = [{json.dumps(ready.endpoint)}]"]
    if len(command.models) > 1:
        lines.append(f"model = {json.dumps(ready.model)}  # or {', '.join(command.models[1:])}")
    if command.api_key and not os.environ.get(KEY_VARIABLE):
        lines.append(f"# and where it is run: export {KEY_VARIABLE}=$VLLM_API_KEY")
    if (most := max(1, memory.pictures_that_fit(ready.context))) < ready.images:
        lines.append(f"max_images = {most}  # as many as the context surely has room for")
    return "\n".join([*lines, ""])


def _adapters(given: Sequence[str]) -> dict[str, str]:
    adapters: dict[str, str] = {}
    for one in given:
        name, equals, folder = one.partition("=")
        if not (name and equals and folder) or name in adapters:
            raise ServerLaunchError(f"--adapter {one}: expected NAME=FOLDER, each name once")
        adapters[name] = folder
    return adapters


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM, and the end of the terminal, count as Ctrl-C; what nohup had ignored stays ignored."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    asked = (signal.SIGTERM, signal.SIGHUP)
    numbers = [one for one in asked if signal.getsignal(one) is not signal.SIG_IGN]
    before: list[Callable[..., object] | int | None] = [signal.signal(one, interrupt) for one in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
