"""``selftrain agents``: vLLM servers for the agents started and checked, and what agents are asked."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from agents.client.endpoints import plain_endpoint
from agents.errors import ServerLaunchError
from agents.vllm.check import check_server
from agents.vllm.command import Device, serve_command
from agents.vllm.interpreter import find_interpreter
from agents.vllm.launch import Ready, Server, serving
from selftrain._util.printable import printable
from selftrain.cli.commands import noun
from selftrain.cli.options import KEY_VARIABLE, Overrides, Recipe
from selftrain.cli.printing import say
from selftrain.config import load_recipe
from selftrain.data.task import load_task
from selftrain.errors import RecipeError
from selftrain.panels import VLMPanel, brief_of, opener
from selftrain.report.prompt_preview import previews

app = noun("Start or check the vLLM servers of the agents, show their prompts.")

LISTENING, CAPACITY, HARDWARE = "Who reaches it", "How much at once", "What it runs on"


@app.command(
    help="Start a vLLM server for the agents on this machine, until Ctrl-C.\n\n"
    "Prints every stage, then the lines of a recipe that use it. Ctrl-C or SIGTERM ends the server and"
    " everything that it started (exit status 0); a server that cannot be started, or ends by itself, is"
    " exit status 2. What stands after -- is passed on to vLLM. A key that callers must show is taken from"
    f" {KEY_VARIABLE}, never from the command line. A model that was trained here is served by another"
    " command: `selftrain serve`.",
    epilog="Example: selftrain agents serve llava-hf/llava-onevision-qwen2-7b-ov-hf --port 8000 --"
    " --max-num-batched-tokens 8192",
)
def serve(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A folder, or ORGANISATION/NAME on the Hugging Face hub.")
    ],
    flags: Annotated[
        list[str] | None, typer.Argument(metavar="-- FLAGS", help="Flags of vLLM, after --.")
    ] = None,
    *,
    name: Annotated[
        str, typer.Option(show_default=False, help="Served under this name; by default MODEL's last part.")
    ] = "",
    adapter: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=FOLDER",
            default_factory=list,
            show_default=False,
            help="A LoRA adapter; may be given several times.",
        ),
    ],
    log: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Add the server's output to FILE; by default a temporary one."),
    ] = None,
    time_limit: Annotated[float, typer.Option(metavar="S", help="Seconds until it can serve.")] = 900.0,
    host: Annotated[str, typer.Option(help="Address to listen on.", rich_help_panel=LISTENING)] = "127.0.0.1",
    allow_remote: Annotated[
        bool,
        typer.Option(
            "--allow-remote",
            help="Let --host be an address that other machines reach.",
            rich_help_panel=LISTENING,
        ),
    ] = False,
    port: Annotated[int, typer.Option(help="0: one that is free.", rich_help_panel=LISTENING)] = 8000,
    images: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            rich_help_panel=CAPACITY,
            help="Most images of one prompt, 0-16; by default 16 if it takes any.",
        ),
    ] = None,
    max_model_len: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            rich_help_panel=CAPACITY,
            help="Tokens of prompt and answer; by default the model's.",
        ),
    ] = None,
    max_num_seqs: Annotated[
        int | None,
        typer.Option(
            metavar="N", rich_help_panel=CAPACITY, help="Most requests at the same time; by default vLLM's."
        ),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(
            rich_help_panel=HARDWARE,
            help="Of weights and activations; auto: on the CPU the faster one, else the model's.",
        ),
    ] = "auto",
    device: Annotated[
        Device, typer.Option(rich_help_panel=HARDWARE, help="auto: what vLLM was built for.")
    ] = "auto",
    tensor_parallel: Annotated[
        int, typer.Option(metavar="N", rich_help_panel=HARDWARE, help="GPUs that share each layer.")
    ] = 1,
    data_parallel: Annotated[
        int, typer.Option(metavar="N", rich_help_panel=HARDWARE, help="Copies of the model.")
    ] = 1,
    gpu_memory: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            rich_help_panel=HARDWARE,
            help="Share of each GPU's memory, 0-1; by default vLLM's.",
        ),
    ] = None,
    kv_cache_gib: Annotated[
        int, typer.Option(metavar="N", rich_help_panel=HARDWARE, help="Memory for the cache on the CPU.")
    ] = 1,
    python: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=HARDWARE,
            help="The Python that has vLLM; by default SELFTRAIN_VLLM_PYTHON, else .venv-vllm.",
        ),
    ] = None,
) -> None:
    """Serve until asked to end.

    Raises:
        ServerLaunchError: It cannot be started, or ended by itself.
    """
    if flags and not flags[0].startswith("-"):
        raise typer.BadParameter(f"{flags[0]!r} follows MODEL: what is meant for vLLM stands after --")
    command = serve_command(
        find_interpreter(python), model, name=name, host=host, port=port, allow_remote=allow_remote,
        images=images, max_model_len=max_model_len, dtype=dtype, device=device,
        tensor_parallel=tensor_parallel, data_parallel=data_parallel, gpu_memory=gpu_memory,
        kv_cache_gib=kv_cache_gib, max_num_seqs=max_num_seqs, adapters=_adapters(adapter),
        api_key=os.environ.get(KEY_VARIABLE, ""), extra=flags or (),
    )  # fmt: skip
    if allow_remote and not command.api_key:
        say(f"note: whoever reaches {host} may use this server: set {KEY_VARIABLE} to ask for a key")
    with _ended_by_signals():
        try:
            with serving(command, log=log, seconds=time_limit, report=say) as (server, ready):
                say(_ready_line(ready))
                say(_recipe_lines(server, ready))
                server.wait()
        except KeyboardInterrupt:
            say("stopped")


@app.command(
    help="See whether servers can do what the agents need.\n\n"
    "Whether they are alive, what they serve, and whether one constrained answer about a picture comes"
    " back as the agents need it. Exit status 1 if one cannot be used.",
    epilog="Example: selftrain agents check http://127.0.0.1:8000",
)
def check(
    servers: Annotated[list[str], typer.Argument(metavar="URL", help="For instance http://127.0.0.1:8000.")],
    model: Annotated[
        str,
        typer.Option(
            show_default=False, help="The name that must be served; by default the only one that is."
        ),
    ] = "",
    text_only: Annotated[
        bool, typer.Option("--text-only", help="Ask about a text: the model takes no images.")
    ] = False,
    key_variable: Annotated[
        str, typer.Option(metavar="NAME", help="Environment variable of the key to show.")
    ] = KEY_VARIABLE,
    time_limit: Annotated[float, typer.Option(metavar="S", help="Seconds for the answer.")] = 120.0,
) -> int:
    """Print what was found of each server; 1 if one cannot be used.

    Raises:
        ServerRefusedError: An address that is none.
    """
    key, failed = os.environ.get(key_variable, ""), False
    for address in map(plain_endpoint, servers):
        say(address)
        for found in check_server(address, model=model, key=key, image=not text_only, seconds=time_limit):
            say(f"  {found.what:<8}{'ok' if found.passed else 'FAILED':<8}{found.detail}")
            failed |= not found.passed
    return 1 if failed else 0


@app.command(
    help="Show what vision-language agents are asked about a post.\n\n"
    "Every prompt of the recipe's protocol, filled for one post; no model is asked.",
    epilog="Example: selftrain agents prompts recipe.toml --post 17 --only reviewer.first",
)
def prompts(
    recipe_file: Recipe,
    overrides: Overrides,
    post: Annotated[
        str | None, typer.Option(metavar="ID", help="Id of a post; by default the manifest's first.")
    ] = None,
    only: Annotated[
        str | None, typer.Option(metavar="NAME", help="One prompt, for instance reviewer.first.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Requests as JSON lines, pictures by their hash.")
    ] = False,
) -> None:
    """Print the prompts.

    Raises:
        RecipeError: No recipe of such agents, or no such prompt.
        ManifestError: No such post.
    """
    recipe = load_recipe(recipe_file, overrides)
    task = load_task(recipe.data.task)
    opening = opener(recipe.data.max_image_pixels)
    agent = VLMPanel(**recipe.vlm.arguments()).agent(brief_of(task), recipe.seed)
    shown = previews(recipe, task, agent, opening, post)
    names = [preview.template for preview in shown]
    if only is not None and only not in names:
        raise RecipeError(f"no prompt is named {only!r}; this protocol has {names}: choose one of them")
    for preview in shown:
        if only not in (None, preview.template):
            continue
        if as_json:
            print(json.dumps({"prompt": preview.template, **preview.request.to_json()}, ensure_ascii=False))
            continue
        say(f"=== {preview.template} ===")
        for line in preview.lines():
            print(printable(line))
        say(f"--- answer: {json.dumps(preview.request.schema)}\n")


def _ready_line(ready: Ready) -> str:
    return (
        f"ready: {ready.endpoint} model {ready.model} ({ready.server}), context {ready.context},"
        f" images {ready.images}"
    )


def _recipe_lines(server: Server, ready: Ready) -> str:
    """Return the lines of a recipe that use the server."""
    command = server.command
    lines = ["", "[agents]", 'kind = "vlm"', "", "[vlm]", f"servers = [{json.dumps(ready.endpoint)}]"]
    if len(command.models) > 1:
        lines.append(f"model = {json.dumps(ready.model)}  # or {', '.join(command.models[1:])}")
    if command.api_key and not os.environ.get(KEY_VARIABLE):
        lines.append('key_variable = "VLLM_API_KEY"')
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
