"""Clients of every kind, at once: those who ask properly, who leave, who hardly read, and who do everything wrong."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .exchange import Answer, exchange, head_of, opened
from .tally import Asked, Tally
from .world import DAMAGED, World

WORDS = ("river", "stone", "amber", "seven", "cloud", "winter", "paper", "engine", "violet", "harbour")
# Prompts of some tasks begin alike, for the prefix cache.
INSTRUCTION = "Read the following words with care and go on with what comes to mind first, in few words only. "
PROMPTS = 8
MAX_TOKENS = 12


@dataclass(frozen=True)
class Keys:
    """Texts of keys: some for all tasks, an admin's, one for a single task, one of few tokens, one of few requests."""

    users: tuple[str, ...]
    admin: str
    narrow: str
    poor: str
    rushed: str


def expect(answer: Answer, *wanted: tuple[int, str]) -> None:
    """Raise where an answer is not one of these refusals, in OpenAI's shape."""
    if (answer.status, answer.code) not in wanted:
        raise AssertionError(f"got {answer.status} {answer.body[:200]!r}, expected {wanted}")
    if answer.status in (429, 503) and float(answer.headers.get("retry-after", "nan")) < 1:
        raise AssertionError("no Retry-After")


class Crowd:
    """Everybody who asks one server until `until`, a time of time.perf_counter()."""

    def __init__(self, world: World, port: int, keys: Keys, tally: Tally, until: float, body_bytes: int) -> None:
        self.world, self.port, self.keys, self.tally, self.until = world, port, keys, tally, until
        self.body_bytes = body_bytes
        self.draw = random.Random(7)

    def clients(self, times: int = 1) -> list[Callable[[], Awaitable[None]]]:
        """Return what runs side by side, most of it writers."""
        some = [self.write] * 8 + [self.label] * 2 + [self.vector] * 2
        some += [self.leave_a_stream, self.leave_a_load, self.read_slowly, self.read_slowly]
        return [*some, self.keep, self.err, self.err, self.poison, self.spend] * times

    async def run(self, clients: list[Callable[[], Awaitable[None]]]) -> None:
        """Run clients again and again until the time is over; returns when the last answer came."""

        async def one(client: Callable[[], Awaitable[None]]) -> None:
            while time.perf_counter() < self.until:
                await client()
                await asyncio.sleep(0)

        await asyncio.gather(*(one(client) for client in clients))

    @property
    def user(self) -> str:
        """One of the users' keys."""
        return self.draw.choice(self.keys.users)

    async def ask(self, method: str, path: str, body: Any = None, key: str | None = None) -> Answer:
        """Exchange with a user's key, unless another is given ("" sends none)."""
        return await exchange(self.port, method, path, body, self.user if key is None else key)

    def prompt(self) -> str:
        """Return one of few prompts, so that each is judged once and asked often."""
        number = self.draw.randrange(PROMPTS)
        words = " ".join(random.Random(number).choices(WORDS, k=4 + number))
        return INSTRUCTION + words if number % 2 else words

    def writer(self) -> tuple[str, str, str, dict[str, Any]]:
        """Return route, model, prompt and body of a proper generation."""
        prompt, options = self.prompt(), {"max_tokens": MAX_TOKENS, "temperature": 0}
        chat = self.draw.random() < 0.5
        model = self.draw.choice(self.world.writers) + self.draw.choice(["", "", "@prod", "@latest"])
        if self.draw.random() < 0.15:
            chat, model = False, self.world.base.name
        said = {"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}
        return "chat" if chat else "text", model, prompt, {"model": model, **said, **options}

    async def write(self) -> None:
        """Ask for text, whole or as a stream, one choice or more."""
        route, model, prompt, body = self.writer()
        stream, count = self.draw.random() < 0.5, self.draw.choice([1, 1, 1, 2, 3])
        path = "/v1/chat/completions" if route == "chat" else "/v1/completions"
        with self.tally.request("stream" if stream else "write"):
            begun = time.perf_counter()
            answer = await self.ask("POST", path, {**body, "n": count, "stream": stream})
            if answer.status != 200:
                raise AssertionError(f"{model}: {answer.status} {answer.body[:200]!r}")
            texts = streamed(answer) if stream else whole(answer)
            if len(texts) != count:
                raise AssertionError(f"{len(texts)} choices instead of {count}")
            digest = self.answered_by(answer, model, begun)
            asked = Asked(route, model.partition("@")[0], digest, prompt, MAX_TOKENS)
            self.tally.said[asked].update(texts)
            self.tally.answered["stream" if stream else "write"] += 1

    def answered_by(self, answer: Answer, model: str, begun: float) -> str:
        """Return the digest that answered, "" for the base; raises where the model did not mean it in that time."""
        digest = answer.headers.get("x-adapterhub-digest", "")
        meant = {""} if model == self.world.base.name else self.world.meant(model, begun, time.perf_counter())
        if digest not in meant:
            raise AssertionError(f"{model} was answered by {digest!r}, and meant {sorted(meant)}")
        return digest

    async def label(self) -> None:
        """Ask for labels of some texts."""
        texts = [self.prompt() for _ in range(self.draw.choice([1, 3, 6]))]
        with self.tally.request("label"):
            begun = time.perf_counter()
            answer = await self.ask("POST", "/v1/classify", {"model": self.world.labels, "input": texts})
            digest = self.answered_by(answer, self.world.labels, begun)
            for text, entry in zip(texts, answer.json["data"], strict=True):
                asked = Asked("labels", self.world.labels, digest, text)
                self.tally.said[asked].add(tuple(entry["probs"].values()))
            self.tally.answered["label"] += 1

    async def vector(self) -> None:
        """Ask for vectors, of a task or of the base."""
        model = self.draw.choice([self.world.vectors, self.world.base.name])
        texts = [self.prompt() for _ in range(self.draw.choice([1, 4]))]
        with self.tally.request("vector"):
            begun = time.perf_counter()
            answer = await self.ask("POST", "/v1/embeddings", {"model": model, "input": texts})
            digest = self.answered_by(answer, model, begun)
            for text, entry in zip(texts, answer.json["data"], strict=True):
                self.tally.said[Asked("vectors", model, digest, text)].add(tuple(entry["embedding"]))
            self.tally.answered["vector"] += 1

    async def leave_a_stream(self) -> None:
        """Go away in the middle of a stream."""
        _, _, _, body = self.writer()
        body = {**body, "stream": True, "max_tokens": 48, "ignore_eos": True}
        path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
        with self.tally.request("leave a stream"):
            async with opened(self.port, "POST", path, body, self.user) as reader:
                status, _ = await head_of(reader)
                for _ in range(self.draw.randrange(6)):
                    await reader.readline()
            if status != 200:
                raise AssertionError(f"status {status}")
            self.tally.left["leave a stream"] += 1

    async def leave_a_load(self) -> None:
        """Have an adapter unloaded, ask it, and go away before it can have been read again."""
        task = self.draw.choice(self.world.writers)
        with self.tally.request("unload"):
            answer = await self.ask("POST", "/v1/adapters/unload", {"model": task}, self.keys.admin)
            if answer.status != 200:
                raise AssertionError(f"{answer.status} {answer.body[:200]!r}")
            self.tally.answered["unload"] += 1
        with self.tally.request("leave a load"):
            body = {"model": task, "prompt": "Leaving", "max_tokens": 8, "stream": self.draw.random() < 0.5}
            async with opened(self.port, "POST", "/v1/completions", body, self.user):
                await asyncio.sleep(self.draw.random() * 0.05)
            self.tally.left["leave a load"] += 1
        await asyncio.sleep(0.2)

    async def read_slowly(self) -> None:
        """Read a byte a second of a long answer, with hardly any room for the rest, and give up after a while."""
        _, _, _, body = self.writer()
        chat = "messages" in body
        logprobs = {"logprobs": True, "top_logprobs": 5} if chat else {"logprobs": 5}
        body = {**body, **logprobs, "stream": True, "n": 3, "max_tokens": 40, "ignore_eos": True}
        path = "/v1/chat/completions" if chat else "/v1/completions"
        with self.tally.request("read slowly"):
            async with opened(self.port, "POST", path, body, self.user, buffer=2048) as reader:
                for _ in range(self.draw.randint(3, 12)):
                    if not await reader.read(1):
                        raise AssertionError("the answer ended early")
                    await asyncio.sleep(min(1.0, max(0.0, self.until - time.perf_counter())))
            self.tally.left["read slowly"] += 1

    async def keep(self) -> None:
        """Load, pin and unpin adapters, and look at the lists, as an admin."""
        model = self.draw.choice(self.world.writers) + self.draw.choice(["", "@1", "@2", "@latest"])
        steps: list[tuple[str, str, Any]] = [
            ("POST", f"/v1/adapters/{name}", {"model": model}) for name in ("load", "pin", "unpin")
        ]
        steps += [("GET", path, None) for path in ("/v1/adapters", "/v1/models", "/metrics", "/ready", "/health")]
        steps += [("POST", "/v1/load_lora_adapter", {"lora_name": model})]
        for method, path, body in steps:
            with self.tally.request("keep"):
                answer = await self.ask(method, path, body, self.keys.admin)
                if answer.status != 200:
                    raise AssertionError(f"{path}: {answer.status} {answer.body[:200]!r}")
                self.tally.answered["keep"] += 1
        await asyncio.sleep(0.3)

    async def err(self) -> None:
        """Do one thing wrong."""
        method, path, body, key, wanted = self.draw.choice(self.mistakes())
        with self.tally.request("err"):
            expect(await self.ask(method, path, body, key), wanted)
            self.tally.refused["err"] += 1
        await asyncio.sleep(0.05)

    def mistakes(self) -> list[tuple[str, str, Any, str | None, tuple[int, str]]]:
        """Return method, path, body, key (None: a user's) and the refusal it must get."""
        text, good = "/v1/completions", {"model": self.world.writers[0], "prompt": "Hi", "max_tokens": 2}
        far = "../../../../etc/passwd"
        return [
            ("POST", text, b'{"model": "writer-0", ', None, (400, "invalid_json")),
            ("POST", text, b"", None, (400, "invalid_json")),
            ("POST", text, b"\xff\xfe\x00", None, (400, "invalid_json")),
            ("POST", text, b"[" * 5000, None, (400, "invalid_json")),
            ("POST", text, {**good, "max_tokens": -1}, None, (400, "invalid_request")),
            ("POST", text, {**good, "temperature": "hot"}, None, (400, "invalid_request")),
            ("POST", text, {**good, "echo": True}, None, (400, "unsupported_request")),
            ("POST", text, {**good, "prompt": "long " * 5000}, None, (400, "context_length_exceeded")),
            ("POST", text, {**good, "prompt": [10**9]}, None, (400, "invalid_request")),
            ("POST", text, {**good, "model": self.world.labels}, None, (400, "unsupported_request")),
            ("POST", "/v1/classify", {"model": self.world.labels, "input": ["a", ""]}, None, (400, "invalid_request")),
            ("POST", text, {**good, "model": "writer-O"}, None, (404, "model_not_found")),
            ("POST", text, {**good, "model": "writer-0@77"}, None, (404, "model_not_found")),
            ("POST", text, {**good, "model": far}, None, (404, "model_not_found")),
            ("POST", text, {**good, "model": "x" * 10000}, None, (404, "model_not_found")),
            ("GET", f"/v1/models/{far}", None, None, (404, "model_not_found")),
            ("GET", "/v1/models/..%2f..%2fetc%2fpasswd", None, None, (404, "model_not_found")),
            ("POST", "/v1/adapters/load", {"model": far}, self.keys.admin, (404, "model_not_found")),
            ("GET", "/v1/nothing", None, None, (404, "not_found")),
            ("DELETE", "/v1/models", None, None, (405, "method_not_allowed")),
            ("POST", text, b" " * (self.body_bytes + 1), None, (413, "request_too_large")),
            ("POST", text, good, "", (401, "invalid_api_key")),
            ("POST", text, good, "ah_wrong", (401, "invalid_api_key")),
            ("POST", text, {**good, "model": self.world.writers[-1]}, self.keys.narrow, (403, "permission_denied")),
            ("GET", "/metrics", None, self.user, (403, "permission_denied")),
            ("POST", "/v1/adapters/unload", {"model": "writer-0"}, self.user, (403, "permission_denied")),
        ]

    async def poison(self) -> None:
        """Ask adapters that are damaged or whose numbers overflow: never an answer."""
        for task in DAMAGED:
            with self.tally.request("poison"):
                stream = self.draw.random() < 0.5
                body = {"model": task, "prompt": self.prompt(), "max_tokens": 8, "stream": stream}
                expect(await self.ask("POST", "/v1/completions", body), (422, "corrupt_adapter"))
                self.tally.refused["poison"] += 1
        await asyncio.sleep(0.1)

    async def spend(self) -> None:
        """Ask with keys that have little left."""
        body = {"model": self.world.writers[0], "prompt": "Spending", "max_tokens": 8, "temperature": 0}
        for kind, key, code in (
            ("quota", self.keys.poor, "insufficient_quota"),
            ("rate", self.keys.rushed, "rate_limit_exceeded"),
        ):
            with self.tally.request(kind):
                answer = await self.ask("POST", "/v1/completions", body, key)
                if answer.status == 200:
                    self.tally.answered[kind] += 1
                else:
                    expect(answer, (429, code))
                    self.tally.refused[kind] += 1
        await asyncio.sleep(0.1)


def whole(answer: Answer) -> list[str]:
    """Return the texts of an answer's choices."""
    return [choice["text"] if "text" in choice else choice["message"]["content"] for choice in answer.json["choices"]]


def streamed(answer: Answer) -> list[str]:
    """Return the texts of a stream's choices; raises where it broke off."""
    *events, last = answer.events
    if last != "[DONE]":
        raise AssertionError(f"the stream broke off: {str(last)[:200]}")
    texts: dict[int, str] = {}
    for event in events:
        for choice in event["choices"]:
            texts[choice["index"]] = texts.get(choice["index"], "") + _piece(choice)
    return list(texts.values())


def _piece(choice: Mapping[str, Any]) -> str:
    found = choice["text"] if "text" in choice else choice["delta"].get("content")
    return found or ""
