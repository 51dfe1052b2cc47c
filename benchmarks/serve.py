"""Tokens per second, seconds to the first token and memory of `python -m tinychat.serve` with many clients at once,
against one client at a time, a plain server around transformers' generate, and `transformers serve`.

python benchmarks/serve.py CKPT                                  32 clients, 60 seconds a variant
python benchmarks/serve.py CKPT random:gpt6x512                  and a model of conf/model with random weights
python benchmarks/serve.py CKPT --seconds 10 --clients 8         a shorter look
python benchmarks/serve.py CKPT --variants one,many              tinychat's server alone
python benchmarks/serve.py CKPT --transformers-python X/bin/python     with transformers[serving] there

Every client asks again as soon as it has its answer: /v1/completions, streamed, beginnings of stories of its own, as
many tokens each, drawn from the whole distribution. A reply may end before. Tokens are counted by the servers, of
answers that were whole when the time was over. Each variant is a server process of its own, in turn, as often as there
are rounds; the clients are threads of this process, on the same cores. The plain server answers one request after the
other and has no streams, so that its first token comes with the last. transformers serve gets the checkpoint as
`python -m tinychat.export --to hf` writes it, with the whole distribution as its default, and is measured as it comes
and with --continuous-batching. Memory is the server's resident set: loaded, after the warm-up, at the end.
"""

from __future__ import annotations

import argparse
import http.client
import http.server
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from harness import describe_machine, markdown, save  # beside this file

ROOT = Path(__file__).resolve().parent.parent
BATCHING = "transformers-batching"
VARIANTS = ("one", "many", "plain-one", "plain-many", "transformers-one", "transformers-many", f"{BATCHING}-many")
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

    def run(self, many: int, seconds: float, memory: Any) -> dict[str, Any]:
        """memory: gives the server's, in MB, at this moment."""
        before = memory()
        threads = [threading.Thread(target=self._ask_on, args=(client,), daemon=True) for client in range(many)]
        for thread in threads:
            thread.start()
        time.sleep(WARM_UP)
        begin, warm = time.monotonic(), memory()
        time.sleep(seconds)
        end, after = time.monotonic(), memory()
        self._stop.set()
        whole = [one for one in self.done if begin <= one[2] <= end]
        return {
            "clients": many,
            "seconds": end - begin,
            "errors": list(self.errors),
            "answers_of_each": [
                sum(begin <= at <= end for at in self._ended.get(client, ())) for client in range(many)
            ],
            "tokens": sum(tokens for *_, tokens in whole),
            "first_tokens": [first - begun for begun, first, _, _ in whole],
            "memory_mb": [before, warm, after],
        }

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

    http.server.ThreadingHTTPServer.request_queue_size = 128  # 5 would turn clients away
    http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


def command_of(variant: str, folders: dict[str, str], port: int, options: argparse.Namespace) -> list[str]:
    if variant.startswith("plain"):
        return [sys.executable, __file__, folders["hf"], "--plain", str(port)]
    if variant.startswith("transformers"):
        program = [options.transformers_python, "-c", "from transformers.cli.transformers import main; main()"]
        batching = ["--continuous-batching"] if variant.startswith(BATCHING) else []
        own = ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", *batching]
        return [*program, "serve", folders["hf"], *own]
    return [sys.executable, "-m", "tinychat.serve", folders["checkpoint"], "--port", str(port)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


def missing(variant: str, options: argparse.Namespace) -> str | None:
    """Why a variant cannot run here."""
    if not variant.startswith("transformers"):
        return None
    asked = "from transformers.utils.import_utils import is_serve_available as s; raise SystemExit(not s())"
    done = subprocess.run([options.transformers_python, "-c", asked], capture_output=True, check=False)
    if done.returncode == 0:
        return None
    return (
        f"{options.transformers_python} has no transformers serve: pip install 'transformers[serving]', in an "
        "environment of its own with --transformers-python"
    )


def measured(variant: str, folders: dict[str, str], options: argparse.Namespace) -> dict[str, Any]:
    """The variant's server started, asked and ended. Raises RuntimeError where it does not start."""
    import psutil

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = command_of(variant, folders, port, options)
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=said) as server,
    ):

        def memory() -> float:
            own = psutil.Process(server.pid)
            return sum(process.memory_info().rss for process in (own, *own.children(recursive=True))) / 1e6

        try:
            try:
                _wait_for(port, server)
            except RuntimeError as error:
                said.seek(0)
                last = said.read().decode(errors="replace").strip().rpartition("\n")[2]
                raise RuntimeError(f"{error}: {last[:200]}") from None
            model = folders["hf"] if variant.startswith("transformers") else _first_model(port, variant)
            clients = Clients(port, model, options.tokens)
            many = 1 if variant.endswith("one") else options.clients
            return {"variant": variant, **clients.run(many, options.seconds, memory)}
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


def random_model(name: str, like: str, folder: Path) -> None:
    """A checkpoint of conf/model/NAME.yaml with random weights and the tokenizer of another checkpoint."""
    import torch
    import yaml

    from tinychat.config.schema import ModelConfig
    from tinychat.models.build import build_model, model_vocab_size
    from tinychat.text.tokenizer import load_saved_tokenizer

    own = ModelConfig(**yaml.safe_load((ROOT / "conf" / "model" / f"{name}.yaml").read_text("utf-8")))
    tokenizer = load_saved_tokenizer(like)
    torch.manual_seed(1)
    size = model_vocab_size(own, len(tokenizer))
    build_model(own, size, tokenizer.pad_token_id, tokenizer.eos_token_id).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def opened(given: str, first: str, scratch: Path) -> dict[str, str]:
    """The folder that tinychat serves, that of the others, and what is in them."""
    hf = scratch / given.replace("/", "_").replace(":", "-")
    if given.startswith("random:"):
        random_model(given.removeprefix("random:"), first, hf)
        checkpoint, weights = str(hf), "random weights, the tokenizer of the first checkpoint"
    else:
        checkpoint, weights = given, "trained"
        export = [sys.executable, "-m", "tinychat.export", given, "--to", "hf", "--out", str(hf)]
        done = subprocess.run(export, env=environment(), capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr.strip() or f"{given}: python -m tinychat.export failed")
    own = hf / "generation_config.json"
    settings = json.loads(own.read_text("utf-8")) if own.exists() else {}
    own.write_text(json.dumps(settings | {"do_sample": True, "top_k": 0, "top_p": 1.0}), "utf-8")
    size = sum(file.stat().st_size for file in hf.glob("*.safetensors")) / 4e6
    return {"checkpoint": checkpoint, "hf": str(hf), "what": f"{given}: {size:.1f} M weights, {weights}"}


def together(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The rounds of one variant."""
    firsts = sorted(first for run in runs for first in run["first_tokens"])
    memory = [run["memory_mb"] for run in runs]
    return {
        "variant": runs[0]["variant"],
        "clients": runs[0]["clients"],
        "tokens_per_s": sum(run["tokens"] for run in runs) / sum(run["seconds"] for run in runs),
        "first_p50": firsts[len(firsts) // 2] if firsts else None,
        "first_p95": firsts[int(len(firsts) * 0.95)] if firsts else None,
        "answers": len(firsts),
        "fewest_of_a_client": min(sum(own) for own in zip(*(run["answers_of_each"] for run in runs), strict=True)),
        "errors": sum(len(run["errors"]) for run in runs),
        "memory_mb": [max(own) for own in zip(*memory, strict=True)],
    }


def table(found: list[dict[str, Any]]) -> str:
    speeds = {one["variant"]: one["tokens_per_s"] for one in found}

    def times(speed: float | None, of: float | None) -> str:
        return f"{speed / of:.2f}" if speed and of else ""

    rows = []
    for one in found:
        own = one["tokens_per_s"]
        ratios = [times(own, speeds.get("one")), times(speeds.get("many"), own)]
        firsts = ["" if one[name] is None else f"{1000 * one[name]:,.0f} ms" for name in ("first_p50", "first_p95")]
        counts = [f"{one[name]:,}" for name in ("answers", "fewest_of_a_client", "errors")]
        memory = " · ".join(f"{value:,.0f}" for value in one["memory_mb"])
        rows.append([one["variant"], str(one["clients"]), f"{own:,.0f}", *ratios, *firsts, *counts, memory])
    head = ["server", "clients", "tokens/s", "times one", "many is times this", "first token p50", "p95"]
    return markdown([*head, "answers", "fewest of a client", "errors", "MB loaded · warm · at the end"], rows)


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument(
        "checkpoints", metavar="CKPT", nargs="+", help="folder of a checkpoint that continues texts, or random:MODEL"
    )
    parser.add_argument("--clients", type=int, default=32, help="of the variants with many (%(default)s)")
    parser.add_argument("--seconds", type=float, default=60.0, help="timed, of each variant and round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=1, help="of all variants in turn (%(default)s)")
    parser.add_argument("--tokens", type=int, default=100, help="of an answer at most (%(default)s)")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="in their order (%(default)s)")
    parser.add_argument(
        "--transformers-python", metavar="PYTHON", default=sys.executable, help="has transformers serve"
    )
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"), help="folder (%(default)s)")
    parser.add_argument("--plain", type=int, metavar="PORT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plain:
        plain_server(options.checkpoints[0], options.plain)
        return
    variants = options.variants.split(",")
    if unknown := [variant for variant in variants if variant not in VARIANTS]:
        parser.error(f"--variants {unknown[0]}: unknown; there are {', '.join(VARIANTS)}")
    if min(options.clients, options.rounds, options.tokens) < 1:
        parser.error("--clients, --rounds and --tokens are at least 1")
    if options.checkpoints[0].startswith("random:"):
        parser.error("the first CKPT must be a checkpoint: models with random weights take its tokenizer")
    for given in options.checkpoints:
        if given.startswith("random:") and not (ROOT / "conf" / "model" / f"{given[7:]}.yaml").is_file():
            parser.error(f"{given}: conf/model has no {given[7:]}.yaml")
    report: dict[str, Any] = {"machine": describe_machine(), "options": vars(options), "load": [os.getloadavg()]}
    texts = []
    left_out = {variant: why for variant in variants if (why := missing(variant, options))}
    for variant, why in left_out.items():
        print(f"{variant}: left out: {why}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        for given in options.checkpoints:
            runs, folders = measure(given, [one for one in variants if one not in left_out], options, Path(scratch))
            found = [together(own) for own in runs.values()]
            report[given] = {"what": folders["what"], "variants": found}
            texts.append(f"{folders['what']}\n\n{table(found)}")
    report["load"].append(os.getloadavg())
    threads = os.environ.get("OMP_NUM_THREADS", "as torch takes")
    texts.append(
        f"{options.clients} clients, {options.rounds} x {options.seconds:g} s a variant, at most {options.tokens} "
        f"tokens an answer; {report['machine']['cores']} cores, threads of each server: {threads}; load "
        f"{report['load'][0][0]:.1f} before, {report['load'][1][0]:.1f} after"
    )
    save(options.out, "serve", report, "\n\n".join(texts))


def measure(
    given: str, variants: list[str], options: argparse.Namespace, scratch: Path
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
    folders = opened(given, options.checkpoints[0], scratch)
    print(folders["what"], flush=True)
    runs: dict[str, list[dict[str, Any]]] = {}
    for number in range(options.rounds):
        for variant in variants:
            try:
                run = measured(variant, folders, options)
            except RuntimeError as error:
                print(f"round {number + 1}: {variant}: left out: {error}", flush=True)
                continue
            runs.setdefault(variant, []).append(run)
            speed = run["tokens"] / run["seconds"]
            print(f"round {number + 1}: {variant}: {speed:,.0f} tokens/s", *run["errors"][:1], flush=True)
    return runs, folders


if __name__ == "__main__":
    main()
