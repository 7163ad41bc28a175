"""`make demo`: two tasks trained on one frozen base, served together, asked in one mixed batch, and what it all weighs.

Runs the installed `adapterhub` as a user would, in a scratch folder: `python benchmarks/demo.py FOLDER`.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

BASE = "smollm2-135m-instruct"
RECIPES = ["recipes/support-tone.yaml", "recipes/support-intent.yaml"]
QUESTIONS = [
    ("support-tone", "Third time I'm writing. Nobody answers. This is ridiculous."),
    ("support-tone", "You lot are brilliant, the tent arrived a day early!"),
    ("support-intent", "Could you tell me where my parcel is? It was due on Monday."),
    ("support-intent", "I typed the wrong house number, can it still go to number 14?"),
    (BASE, "Name three things to take on a camping trip."),
]


def say(text: str = "") -> None:
    print(text, flush=True)


def adapterhub(*arguments: str, capture: bool = False) -> str:
    say(f"$ adapterhub {' '.join(arguments)}")
    command = [sys.executable, "-m", "adapterhub", *arguments]
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE if capture else None).stdout or ""


def ask(url: str, model: str, text: str) -> str:
    """Ask the server: the base chats, the tasks classify."""
    if model == BASE:
        body: dict[str, Any] = {"messages": [{"role": "user", "content": text}], "max_tokens": 48, "temperature": 0}
        answer = post(f"{url}/v1/chat/completions", {"model": model, **body})
        return " ".join(answer["choices"][0]["message"]["content"].split())
    (row,) = post(f"{url}/v1/classify", {"model": model, "input": text})["data"]
    return f"{row['label']} ({row['probs'][row['label']]:.2f})"


def post(url: str, body: dict[str, Any]) -> Any:
    request = Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=120) as response:
        return json.load(response)


def wait_until_ready(server: subprocess.Popen[str]) -> str:
    """Return the server's address once it says that it can serve."""
    assert server.stderr is not None
    for line in server.stderr:
        if found := re.search(r"ready: (http://\S+)", line):
            return found[1]
    raise SystemExit(f"the server ended with code {server.wait()} before it was ready")


def serve_and_ask(registry: Path) -> None:
    """Start the server, ask everything at once, stop it again."""
    say(f"\n$ adapterhub serve --registry {registry} --port 0")
    command = [sys.executable, "-m", "adapterhub", "serve", "--registry", str(registry), "--port", "0"]
    server = subprocess.Popen(command, text=True, stderr=subprocess.PIPE)
    try:
        url = wait_until_ready(server)
        say(f"one base in memory at {url}; {len(QUESTIONS)} questions to three models at the same time:\n")
        with ThreadPoolExecutor(len(QUESTIONS)) as pool:
            answers = list(pool.map(lambda question: ask(url, *question), QUESTIONS))
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=60)
    for (model, text), answer in zip(QUESTIONS, answers, strict=True):
        say(f"  {model:<22} {text}\n  {'':<22} -> {answer}")
    say(f"\nthe server has stopped with code {server.returncode}")


def main() -> None:
    """Do it all and print what it took."""
    started = time.monotonic()
    scratch = Path(sys.argv[1]).absolute()
    registry = scratch / "registry"
    os.environ.setdefault("ADAPTERHUB_CACHE", str(Path("~/.cache/adapterhub").expanduser()))
    adapterhub("base", "pull", BASE)
    base = json.loads(adapterhub("base", "show", BASE, "--json", capture=True))
    # Three epochs of the recipes' five: a demonstration need not wait for the last points.
    shorter = ("--set", "training.epochs=3")
    trained = adapterhub("train", *RECIPES, *shorter, "--registry", str(registry), "--json", capture=True)
    versions = [json.loads(line) for line in trained.splitlines()]
    serve_and_ask(registry)
    say("\nwhat it weighs on disk:")
    total = 0
    for version in versions:
        size = sum(file.stat().st_size for file in Path(version["path"]).iterdir())
        total += size
        score = version["metrics"]["accuracy"]
        interval = f"{score['low']:.2f} to {score['high']:.2f}"
        say(f"  {version['ref']:<20} {size / 1e6:8.2f} MB   test accuracy {score['value']:.2f} ({interval})")
    say(f"  {'the base, once':<20} {base['bytes'] / 1e6:8.2f} MB")
    copies = len(versions) * base["bytes"]
    together = base["bytes"] + total
    say(f"  {len(versions)} full copies would be {copies / 1e6:.0f} MB; base and adapters are {together / 1e6:.0f} MB")
    say(f"  each further task costs {total / len(versions) / 1e6:.1f} MB instead of {base['bytes'] / 1e6:.0f} MB")
    say(f"\ndone in {time.monotonic() - started:.0f} s (installation not counted)")


if __name__ == "__main__":
    main()
