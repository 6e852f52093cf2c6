"""A web page for trained models: drop or record a video, choose a model, read what it says and what it says it by.

    python src/app.py [--dataset demo] [--host 127.0.0.1] [--port 7860] [--most-mb 200] [--most-minutes 10]

It needs requirements-app.txt too. Nothing but this machine reaches it unless another host is asked for.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import socket
import sys
from contextlib import suppress
from ipaddress import ip_address

from files import shown
from videos.places import locate

NEEDED = ("starlette", "uvicorn")
CLOSING = 3  # seconds that answers get when the page is ended


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    asked = _parser().parse_args(arguments)
    if missing := [name for name in NEEDED if not importlib.util.find_spec(name)]:
        raise SystemExit(f"error: {' and '.join(missing)} missing: "
                         "pip install -r requirements-app.txt -c constraints.txt")
    try:
        name, root, results = locate(asked.dataset)
        listening = listen(asked.host, asked.port)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    with listening:
        from deployment.shown import Adviser

        adviser = Adviser(asked.dataset, name, root, results)
        if not adviser.titles:
            raise SystemExit(f"error: {shown(results)}: no trained model there; run make run DATASET={asked.dataset}")
        serve(listening, adviser, asked)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="A web page that says what trained models see in a video.")
    parser.add_argument("--dataset", default=os.environ.get("DATASET") or "demo",
                        help="whose trained models: demo, ucf101 or a folder (default: DATASET, or demo)")
    parser.add_argument("--host", default="127.0.0.1",
                        help="the address to listen at (default: 127.0.0.1, which only this machine reaches)")
    parser.add_argument("--port", type=int, default=7860, help="default: 7860; 0 takes a free one")
    parser.add_argument("--most-mb", type=_positive, default=200, help="of a video, in megabytes (default: 200)")
    parser.add_argument("--most-minutes", type=_positive, default=10, help="of a video (default: 10)")
    return parser


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: not a number above 0")
    return number


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at an address.

    Raises:
        OSError: there is no such address here, or its port is in use; the message says what to do.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, OverflowError) as error:
        raise OSError(f"can't listen at {host}, port {port} ({error}): is the page open already? Choose another one "
                      "with --port") from None


def serve(listening: socket.socket, adviser, asked: argparse.Namespace) -> None:
    """Shows the page until Ctrl-C."""
    import uvicorn

    from deployment.desk import Limits
    from deployment.server import application

    host, port = listening.getsockname()[:2]
    local = ip_address(host).is_loopback
    if not local:
        print(f"warning: whoever reaches {host} can send videos to be watched here; there is no password",
              file=sys.stderr)
    address = f"[{host}]" if ":" in host else host
    names = [address, asked.host, "localhost"] if local else ["*"]
    app = application(adviser, Limits(asked.most_mb, asked.most_minutes), names)
    print(f"models of {adviser.name}: {', '.join(adviser.titles.values())}\n"
          f"page: http://{address}:{port} (Ctrl-C ends it)", flush=True)
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False,
                            timeout_graceful_shutdown=CLOSING)
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listening])
    print("closed")


if __name__ == "__main__":
    main()
