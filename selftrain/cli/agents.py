"""``selftrain agents``: serve a model with vLLM, and see whether a server can do what agents need."""

from __future__ import annotations

import argparse
import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

    from agents.vllm.launch import Ready, Server

KEY_VARIABLE = "SELFTRAIN_API_KEY"
COMMANDS = {
    "serve": "serve a model with vLLM on this machine, until Ctrl-C",
    "check": "see whether servers can do what the agents need",
}


def add_parsers(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `agents`, whose commands parse their own options: what follows ``--`` belongs to vLLM."""
    parser = subparsers.add_parser(
        "agents",
        help="serve the model behind vision-language agents, or check its servers",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Commands:\n" + "\n".join(f"  {name:<8}{text}" for name, text in COMMANDS.items()),
        epilog="`selftrain agents COMMAND --help` shows the options of a command.",
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=", ".join(COMMANDS))
    parser.add_argument("options", nargs=argparse.REMAINDER, metavar="...", help="options of the command")
    parser.set_defaults(handler=run_agents)


def run_agents(args: argparse.Namespace) -> int:
    """Hands over to the command; what stands after ``--`` is passed on to vLLM."""
    options: list[str] = list(args.options)
    if args.command == "check":
        return run_check(check_parser().parse_args(options))
    at = options.index("--") if "--" in options else len(options)
    return run_serve(serve_parser().parse_args(options[:at]), options[at + 1 :])


def serve_parser() -> argparse.ArgumentParser:
    """The options of ``agents serve``."""
    parser = argparse.ArgumentParser(
        prog="selftrain agents serve",
        usage="%(prog)s MODEL [options] [-- FLAGS OF VLLM]",
        description="Serve a model with vLLM on this machine. Prints every stage, then the lines of a recipe"
        " that use it. Ctrl-C or SIGTERM ends the server and everything that it started (exit status 0); a"
        " server that cannot be started, or ends by itself, is exit status 2.",
        epilog=f"A key that callers must show is taken from {KEY_VARIABLE}, never from the command line.",
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="a folder, or ORGANISATION/NAME on the Hugging Face hub")
    add("--name", default="", help="served under this name (default: the last part of MODEL)")
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--allow-remote", action="store_true", help="let --host be an address that other machines reach")
    add("--port", type=int, default=8000, help="0: one that is free (default: %(default)s)")
    add(
        "--images",
        type=int,
        metavar="N",
        help="most images of one prompt, 0-16 (default: 16 if it takes any)",
    )
    add("--max-model-len", type=int, metavar="N", help="tokens of prompt and answer (default: the model's)")
    add("--max-num-seqs", type=int, metavar="N", help="most requests at the same time (default: vLLM's)")
    add(
        "--dtype",
        default="auto",
        help="of weights and activations (default: on the CPU the faster one, else the model's)",
    )
    add("--device", choices=("auto", "cpu", "gpu"), default="auto", help="default: what vLLM was built for")
    add("--tensor-parallel", type=int, default=1, metavar="N", help="GPUs that share each layer (default: 1)")
    add("--data-parallel", type=int, default=1, metavar="N", help="copies of the model (default: 1)")
    add("--gpu-memory", type=float, metavar="SHARE", help="share of each GPU's memory, 0-1 (default: vLLM's)")
    add(
        "--kv-cache-gib",
        type=int,
        default=1,
        metavar="N",
        help="memory for the cache on the CPU (default: 1)",
    )
    add(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="a LoRA adapter; may be repeated",
    )
    add(
        "--python",
        type=Path,
        help="the Python that has vLLM (default: SELFTRAIN_VLLM_PYTHON, else .venv-vllm)",
    )
    add("--log", type=Path, metavar="FILE", help="add the server's output to FILE (default: a temporary one)")
    add(
        "--time-limit",
        type=float,
        default=900.0,
        metavar="S",
        help="seconds until it can serve (default: 900)",
    )
    return parser


def check_parser() -> argparse.ArgumentParser:
    """The options of ``agents check``."""
    parser = argparse.ArgumentParser(
        prog="selftrain agents check",
        description="See whether servers are alive, what they serve, and whether one constrained answer about"
        " a picture comes back as the agents need it. Exit status 1 if one cannot be used.",
        epilog=f"The key to show is taken from {KEY_VARIABLE}.",
    )
    add = parser.add_argument
    add("addresses", nargs="+", metavar="ADDRESS", help="for instance http://127.0.0.1:8000")
    add("--model", default="", help="the name that must be served (default: the only one that is)")
    add("--text-only", action="store_true", help="ask about a text: the model takes no images")
    add("--key-variable", default=KEY_VARIABLE, help="environment variable of the key (default: %(default)s)")
    add("--time-limit", type=float, default=120.0, metavar="S", help="seconds for the answer (default: 120)")
    return parser


def run_serve(args: argparse.Namespace, extra: Sequence[str]) -> int:
    """Serve until asked to end.

    Raises:
        ServerLaunchError: It cannot be started, or ended by itself.
    """
    from agents.vllm.command import serve_command
    from agents.vllm.interpreter import find_interpreter
    from agents.vllm.launch import serving

    command = serve_command(
        find_interpreter(args.python), args.model, name=args.name, host=args.host, port=args.port,
        allow_remote=args.allow_remote, images=args.images, max_model_len=args.max_model_len,
        dtype=args.dtype, device=args.device, tensor_parallel=args.tensor_parallel,
        data_parallel=args.data_parallel, gpu_memory=args.gpu_memory, kv_cache_gib=args.kv_cache_gib,
        max_num_seqs=args.max_num_seqs, adapters=_adapters(args.adapter),
        api_key=os.environ.get(KEY_VARIABLE, ""), extra=extra,
    )  # fmt: skip
    if args.allow_remote and not command.api_key:
        _say(f"note: whoever reaches {args.host} may use this server: set {KEY_VARIABLE} to ask for a key")
    with _ended_by_signals():
        try:
            with serving(command, log=args.log, seconds=args.time_limit, report=_say) as (server, ready):
                _say(_ready_line(ready))
                _say(_recipe_lines(server, ready))
                server.wait()
        except KeyboardInterrupt:
            _say("stopped")
    return 0


def run_check(args: argparse.Namespace) -> int:
    """Prints what was found of each server; 1 if one cannot be used.

    Raises:
        ServerRefusedError: An address that is none.
    """
    from agents.client.endpoints import plain_endpoint
    from agents.vllm.check import check_server

    key, image, failed = os.environ.get(args.key_variable, ""), not args.text_only, False
    for address in map(plain_endpoint, args.addresses):
        _say(address)
        for check in check_server(address, model=args.model, key=key, image=image, seconds=args.time_limit):
            _say(f"  {check.what:<8}{'ok' if check.passed else 'FAILED':<8}{check.detail}")
            failed |= not check.passed
    return 1 if failed else 0


def _ready_line(ready: Ready) -> str:
    return (
        f"ready: {ready.endpoint} model {ready.model} ({ready.server}), context {ready.context},"
        f" images {ready.images}"
    )


def _recipe_lines(server: Server, ready: Ready) -> str:
    """The lines of a recipe that use the server."""
    command = server.command
    lines = ["", "[agents]", 'kind = "vlm"', "", "[vlm]", f"servers = [{json.dumps(ready.endpoint)}]"]
    if len(command.models) > 1:
        lines.append(f"model = {json.dumps(ready.model)}  # or {', '.join(command.models[1:])}")
    if command.api_key and not os.environ.get(KEY_VARIABLE):
        lines.append('key_variable = "VLLM_API_KEY"')
    return "\n".join([*lines, ""])


def _adapters(given: Sequence[str]) -> dict[str, str]:
    from agents.errors import ServerLaunchError

    adapters: dict[str, str] = {}
    for one in given:
        name, equals, folder = one.partition("=")
        if not (name and equals and folder) or name in adapters:
            raise ServerLaunchError(f"--adapter {one}: expected NAME=FOLDER, each name once")
        adapters[name] = folder
    return adapters


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM, and the end of the terminal, count as Ctrl-C; what nohup had ignored stays ignored."""

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


def _say(text: str) -> None:
    from selftrain._util.printable import printable

    # what a server says is data
    print("\n".join(map(printable, text.split("\n"))), flush=True)
