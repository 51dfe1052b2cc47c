"""Tokens per second and seconds to the first token of `python -m tinychat.serve` with many clients at once, against one
client at a time, a plain server around transformers' generate, and `transformers serve`.

python benchmarks/serve.py CKPT                                32 clients, 60 seconds a variant
python benchmarks/serve.py CKPT --seconds 10 --clients 8       a shorter look
python benchmarks/serve.py CKPT --variants one,many            tinychat's server alone

Every client asks again as soon as it has its answer: /v1/completions, streamed, beginnings of stories of its own, as
many tokens each, drawn from the whole distribution. A reply may end before. Tokens are counted by the servers, of
answers that were whole when the time was over. Each variant is a server process of its own; the clients are threads of
this process, on the same cores. The plain server has no streams, so that its first token comes with the last.
"""

from __future__ import annotations

import argparse
import http.client
import http.server
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from harness import describe_machine, markdown, save  # beside this file

VARIANTS = ("one", "many", "plain-one", "plain-many", "transformers-one", "transformers-many")
WARM_UP = 3.0  # seconds of requests that are not counted
NAMES = ("Mia", "Omar", "Ada", "Luca", "Kenji", "Maya", "Walter", "Alice")
THINGS = ("found a key", "lost a hat", "went to the harbour", "waited for a friend", "had a new idea")


def prompt_of(client: int, number: int) -> str:
    return f"One day, {NAMES[client % len(NAMES)]} {THINGS[(client + number) % len(THINGS)]}."


class Clients:
    """Threads that ask until they are told to stop."""

    def __init__(self, port: int, model: str, tokens: int):
        self.port, self.model, self.tokens = port, model, tokens
        self.done: list[tuple[float, float, float, int]] = []  # begun, first token, end, tokens
        self.errors: list[str] = []
        self._ended: dict[int, list[float]] = {}  # of each client's answers
        self._stop = threading.Event()

    def run(self, many: int, seconds: float) -> dict[str, Any]:
        threads = [threading.Thread(target=self._ask_on, args=(client,), daemon=True) for client in range(many)]
        for thread in threads:
            thread.start()
        time.sleep(WARM_UP)
        begin = time.monotonic()
        time.sleep(seconds)
        end = time.monotonic()
        self._stop.set()
        whole = [one for one in self.done if begin <= one[2] <= end]
        firsts = sorted(first - begun for begun, first, _, _ in whole)
        return {
            "clients": many,
            "answers": len(whole),
            "errors": self.errors,
            "fewest_of_a_client": min(self._counts(many, begin, end)),
            "tokens_per_s": sum(tokens for *_, tokens in whole) / (end - begin),
            "tokens_an_answer": statistics.mean(tokens for *_, tokens in whole) if whole else 0.0,
            "first_p50": firsts[len(firsts) // 2] if firsts else float("nan"),
            "first_p95": firsts[int(len(firsts) * 0.95)] if firsts else float("nan"),
        }

    def _counts(self, many: int, begin: float, end: float) -> list[int]:
        return [sum(begin <= at <= end for at in self._ended.get(client, ())) for client in range(many)]

    def _ask_on(self, client: int) -> None:
        number = 0
        while not self._stop.is_set():
            try:
                one = self._ask(prompt_of(client, number), client * 100_000 + number)
                self.done.append(one)
                self._ended.setdefault(client, []).append(one[2])
            except (OSError, ValueError, http.client.HTTPException) as error:
                if not self._stop.is_set():  # else the server was ended
                    self.errors.append(f"{type(error).__name__}: {error}")
                time.sleep(0.1)
            number += 1

    def _ask(self, prompt: str, seed: int) -> tuple[float, float, float, int]:
        body = {"model": self.model, "prompt": prompt, "max_tokens": self.tokens, "seed": seed, "temperature": 1.0}
        more = {"stream": True, "stream_options": {"include_usage": True}}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        begun, first, tokens = time.monotonic(), None, 0
        try:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/completions", json.dumps(body | more).encode(), headers)
            answer = connection.getresponse()
            if answer.status != 200:
                raise ValueError(f"{answer.status} {answer.read()[:200]!r}")
            for line in answer:
                if line.startswith(b"data: {"):
                    first = first or time.monotonic()
                    if b'"usage": {' in line or b'"usage":{' in line:
                        tokens = json.loads(line[6:])["usage"]["completion_tokens"]
        finally:
            connection.close()
        if first is None or not tokens:
            raise ValueError("a stream without tokens")
        return begun, first, time.monotonic(), tokens


def plain_server(checkpoint: str, port: int) -> None:
    """What one writes first: transformers' generate behind a lock, an answer at a time."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    lock = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(b"{}", "application/json")

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            ids = tokenizer(body["prompt"], return_tensors="pt")["input_ids"]
            with lock, torch.no_grad():
                torch.manual_seed(body["seed"])
                out = model.generate(ids, max_new_tokens=body["max_tokens"], do_sample=True, top_k=0)
            new = out[0, ids.shape[1] :].tolist()
            told = {"choices": [{"text": tokenizer.decode(new)}], "usage": {"completion_tokens": len(new)}}
            self._answer(b"data: " + json.dumps(told).encode() + b"\n\n", "text/event-stream")

        def _answer(self, content: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


def command_of(variant: str, checkpoint: str, port: int) -> list[str]:
    if variant.startswith("plain"):
        return [sys.executable, __file__, checkpoint, "--plain", str(port)]
    if variant.startswith("transformers"):
        program = [sys.executable, "-c", "from transformers.cli.transformers import main; main()"]
        return [*program, "serve", checkpoint, "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    return [sys.executable, "-m", "tinychat.serve", checkpoint, "--port", str(port)]


def measured(variant: str, checkpoint: str, options: argparse.Namespace) -> dict[str, Any]:
    """The variant's server started, asked and ended."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent), "HF_HUB_OFFLINE": "1"}
    command = command_of(variant, checkpoint, port)
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            _wait_for(port, server)
            model = checkpoint if variant.startswith("transformers") else _first_model(port, variant)
            clients = Clients(port, model, options.tokens)
            many = 1 if variant.endswith("one") else options.clients
            return {"variant": variant, **clients.run(many, options.seconds)}
        finally:
            server.kill()


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 300
    while True:
        if server.poll() is not None:
            raise RuntimeError(f"its server ended with status {server.returncode}")
        try:
            _get(port, "/health")
            return
        except OSError:
            if time.monotonic() > end:
                raise RuntimeError("its server did not start within 300 seconds") from None
            time.sleep(0.2)


def _get(port: int, path: str) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path)
        return json.loads(connection.getresponse().read() or b"{}")
    finally:
        connection.close()


def _first_model(port: int, variant: str) -> str:
    return "plain" if variant.startswith("plain") else _get(port, "/v1/models")["data"][0]["id"]


def table(runs: list[dict[str, Any]]) -> str:
    base = next((run["tokens_per_s"] for run in runs if run["variant"] == "one"), None)
    rows = []
    for run in runs:
        ratio = f"{run['tokens_per_s'] / base:.1f}" if base else ""
        firsts = [f"{1000 * run[name]:,.0f} ms" for name in ("first_p50", "first_p95")]
        counts = [f"{run['answers']:,}", f"{run['fewest_of_a_client']:,}", f"{len(run['errors']):,}"]
        rows.append([run["variant"], str(run["clients"]), f"{run['tokens_per_s']:,.0f}", ratio, *firsts, *counts])
    head = [
        "server",
        "clients",
        "tokens/s",
        "of one",
        "first token p50",
        "p95",
        "answers",
        "fewest of a client",
        "errors",
    ]
    return markdown(head, rows)


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("checkpoint", help="folder of a checkpoint that continues texts")
    parser.add_argument("--clients", type=int, default=32, help="of the variants with many (%(default)s)")
    parser.add_argument("--seconds", type=float, default=60.0, help="timed, of each variant (%(default)s)")
    parser.add_argument("--tokens", type=int, default=100, help="of an answer at most (%(default)s)")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="in their order (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"), help="folder (%(default)s)")
    parser.add_argument("--plain", type=int, metavar="PORT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plain:
        plain_server(options.checkpoint, options.plain)
        return
    variants = options.variants.split(",")
    if unknown := [variant for variant in variants if variant not in VARIANTS]:
        parser.error(f"--variants {unknown[0]}: unknown; there are {', '.join(VARIANTS)}")
    checkpoint = str(Path(options.checkpoint).resolve())
    machine = describe_machine()
    runs = []
    for variant in variants:
        try:
            runs.append(measured(variant, checkpoint, options))
        except RuntimeError as error:
            print(f"{variant}: left out: {error}", flush=True)
            continue
        print(f"{variant}: {runs[-1]['tokens_per_s']:,.0f} tokens/s", *runs[-1]["errors"][:1], flush=True)
    text = table(runs)
    save(options.out, "serve", {"machine": machine, "runs": runs}, text)


if __name__ == "__main__":
    main()
