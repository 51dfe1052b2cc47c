"""Serve checkpoints: the OpenAI API for programs, a page for people.

    python -m tinychat.serve latest

torch is imported after the arguments have been read and the address is taken, so that `--help`, a wrong option and a
port in use answer at once.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import ipaddress
import os
import socket
import sys
from collections.abc import Iterator

from tinychat.errors import UserError, install_command
from tinychat.runtime.console import Parser, add_model_code, main_of
from tinychat.runtime.terminal import say

# After which Python takes its lock from one thread for another: what answers clients must not keep it long from what
# computes, which gives it away with every operator.
SWITCH_SECONDS = 0.0005
KEY_ENV = "TINYCHAT_API_KEY"
DESCRIPTION = """Serve checkpoints to programs that speak the OpenAI API (/v1/chat/completions, /v1/completions,
/v1/models), and a page at / to talk to them, several side by side. Reward models among them score replies (/v1/score,
and on the page)."""
EPILOG = f"""examples:
  python -m tinychat.serve latest                           then open http://127.0.0.1:8000
  python -m tinychat.serve PRETRAINED SFT PPO REWARD        side by side on the page, with scores
  python -m tinychat.serve CKPT --host 0.0.0.0 --api-key KEY      for other machines
  curl 127.0.0.1:8000/v1/chat/completions -d '{{"messages": [{{"role": "user", "content": "What is 2 + 3?"}}]}}'

CKPT is what python -m tinychat.chat takes: a checkpoint folder (adapters too), a run folder, the name of an experiment
or of a run in it, latest, runs:/ID of MLflow, a GGUF file, or a hub id.

New requests join the replies that are being written (continuous batching); a reply does not depend on the others, and
with the same seed it is the same. Without --api-key only this machine may ask. --api-key may also stand in the
environment, as {KEY_ENV}. Ctrl-C ends the server. Options may be written with - or _."""


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("serve", DESCRIPTION, EPILOG)
    add = parser.add_argument
    add("checkpoints", metavar="CKPT", nargs="+", help="models to talk to, and reward models")
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="default %(default)s: this machine alone")
    add("--port", type=int, default=8000, metavar="N", help="default %(default)s; 0: any that is free")
    add("--api-key", metavar="KEY", default=os.environ.get(KEY_ENV), help="what clients must send")
    add("--outputs", metavar="FOLDER", default="outputs", help="where runs are (default %(default)s)")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default %(default)s")
    add("--precision", choices=["fp32", "bf16"], default="fp32", help="of the arithmetic (default %(default)s)")
    add_model_code(parser)
    bounds = parser.add_argument_group("limits")

    def limit(name: str, default: int, text: str) -> None:
        bounds.add_argument(name, type=int, default=default, metavar="N", help=f"{text} (default %(default)s)")

    limit("--batch-size", 32, "replies of a model that are written side by side")
    limit("--queue", 64, "requests that may wait; more get status 429")
    limit("--max-tokens", 2048, "tokens of a reply at most")
    limit("--max-body", 1 << 20, "bytes of a request at most")
    limit("--timeout", 300, "seconds that a request may take")
    args = parser.parse_args(arguments)
    for name, low in {"batch_size": 1, "queue": 1, "max_tokens": 1, "max_body": 1000, "timeout": 1}.items():
        if getattr(args, name) < low:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}: must be at least {low}")
    if not 0 <= args.port < 65536:
        raise UserError(f"--port {args.port}: must be from 0 to 65535")
    if args.api_key is not None and not (args.api_key.isascii() and args.api_key.strip()):
        raise UserError("--api-key: must be of ASCII characters, one at least")
    return args


def check_extra() -> None:
    """Raise UserError where the packages of the extra are missing."""
    if missing := [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]:
        raise UserError(
            f"python -m tinychat.serve needs the package{'s' * (len(missing) > 1)} {' and '.join(missing)}: "
            f"{install_command('serve')}"
        )


@contextlib.contextmanager
def address(host: str, port: int, key: str | None) -> Iterator[socket.socket]:
    """A socket that listens there. Raises UserError for an address that is in use, is not this machine's, or is seen
    by others while there is no key."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise UserError(f"--host {host}: is no address of this machine; 127.0.0.1 is this machine alone") from None
    family, *_, place = found[0]
    if key is None and not ipaddress.ip_address(str(place[0]).partition("%")[0]).is_loopback:
        raise UserError(f"--host {host}: others would reach it; add --api-key KEY, which they must then send")
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(place)
            listening.listen(2048)
        except PermissionError:
            raise UserError(f"--port {port}: needs a privileged user; take one above 1023") from None
        except OSError as error:
            if port and "in use" in str(error):
                raise UserError(
                    f"--port {port}: is in use, by another server perhaps; --port {port + 1 if port < 65535 else 0}, "
                    "or --port 0 for any that is free"
                ) from None
            raise UserError(f"--host {host} --port {port}: cannot be taken ({error.strerror})") from None
        yield listening
    finally:
        listening.close()


def run(arguments: list[str]) -> None:
    args = parse(arguments)
    check_extra()
    with address(args.host, args.port, args.api_key) as listening:
        from tinychat.serve.served import open_all

        served = open_all(args)
        serve(args, served, listening)


def serve(args: argparse.Namespace, served: list, listening: socket.socket) -> None:
    """Until a signal ends it."""
    import uvicorn

    from tinychat.serve.app import Limits, Server
    from tinychat.serve.connections import configuration

    limits = Limits(args.batch_size, args.queue, args.max_tokens, args.max_body, float(args.timeout))
    server = Server(served, limits, args.api_key, args.host)
    host, port = listening.getsockname()[:2]
    told = ", ".join(f"{model.name} ({model.kind})" for model in served)
    say(f"{told} at http://{f'[{host}]' if ':' in host else host}:{port}; Ctrl-C ends the server")
    sys.setswitchinterval(SWITCH_SECONDS)
    server.start()
    try:
        uvicorn.Server(configuration(server.app)).run(sockets=[listening])
    finally:
        server.close()


def main() -> None:
    """Console entry. Exit status: 0 done, 1 an error that was explained, 130 stopped by Ctrl-C."""
    main_of(run)


if __name__ == "__main__":
    main()
