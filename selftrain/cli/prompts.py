"""``selftrain prompts``: what the agents of a recipe would be asked about a post."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def add_parsers(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "prompts",
        help="show what vision-language agents are asked about a post",
        description="Every prompt of the recipe's protocol, filled for one post; no model is asked.",
    )
    parser.add_argument("recipe", type=Path, metavar="RECIPE", help="a TOML file")
    parser.add_argument("--post", metavar="ID", help="id of a post (default: the manifest's first)")
    parser.add_argument("--only", metavar="NAME", help='one prompt, for instance "reviewer.first"')
    parser.add_argument("--json", action="store_true", help="requests as JSON lines, pictures by their hash")
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="SECTION.KEY=VALUE",
        help="change one value of the recipe; may be given several times",
    )  # fmt: skip
    parser.set_defaults(handler=show_prompts)


def show_prompts(args: argparse.Namespace) -> int:
    """Prints the prompts."""
    from selftrain._util.printable import printable
    from selftrain.build import build_vlm_agent, opener
    from selftrain.config import load_recipe
    from selftrain.data.task import load_task
    from selftrain.errors import RecipeError
    from selftrain.report.prompt_preview import previews

    recipe = load_recipe(args.recipe, args.overrides)
    task = load_task(recipe.data.task)
    opening = opener(recipe.data.max_image_pixels)
    shown = previews(recipe, task, build_vlm_agent(recipe, task), opening, args.post)
    names = [preview.template for preview in shown]
    if args.only is not None:
        shown = [preview for preview in shown if preview.template == args.only]
        if not shown:
            raise RecipeError(
                f"no prompt is named {args.only!r}; this protocol has {names}: choose one of them"
            )
    for preview in shown:
        if args.json:
            print(json.dumps({"prompt": preview.template, **preview.request.to_json()}, ensure_ascii=False))
            continue
        print(f"=== {preview.template} ===")
        for line in preview.lines():
            print(printable(line))
        print(f"--- answer: {json.dumps(preview.request.schema)}\n")
    return 0
