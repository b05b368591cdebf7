# SPDX-License-Identifier: Apache-2.0
"""The command ``getimg-simulator``, also ``python -m airflow_provider_getimg.simulator``."""

from __future__ import annotations

import argparse
import errno
import os
import socket
import sys
from typing import TYPE_CHECKING, NoReturn

from airflow_provider_getimg.simulator.account import DEFAULT_BALANCE, parse_balance
from airflow_provider_getimg.simulator.auth import DEFAULT_API_KEY
from airflow_provider_getimg.simulator.fields import BLOCKED_WORDS
from airflow_provider_getimg.simulator.settings import Changes, Settings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from decimal import Decimal

MISSING_EXTRA = "getimg-simulator needs the extra 'simulator', or for tests 'testing': pip install 'airflow-provider-getimg[simulator]'"
# Modules that the extra installs: if one is missing, so is the extra.
EXTRA = ("PIL", "av", "fastapi", "starlette", "uvicorn")
DEFAULT_PORT = 8989


class OneSentenceParser(argparse.ArgumentParser):
    """A parser that reports an error in one sentence, without listing all options first."""

    def error(self, message: str) -> NoReturn:
        """Print the error and exit."""
        self.exit(2, f"getimg-simulator: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the simulator until a signal ends it, and return the exit code."""
    parser = _parser()
    options = parser.parse_args(argv)
    settings = Settings()
    try:
        settings.change({k: v for k, v in vars(options).items() if k in Changes.model_fields}, texts=True)
    except ValueError as error:
        parser.error(str(error))
    try:
        from airflow_provider_getimg.simulator.account import Account
        from airflow_provider_getimg.simulator.server import listen, serve
        from airflow_provider_getimg.simulator.state import Simulator
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in EXTRA:
            raise
        print(MISSING_EXTRA, file=sys.stderr)
        return 1
    try:
        listener = listen(options.host, options.port)
    except (OSError, UnicodeError) as error:
        # The message of a failed bind repeats the address; the text of its errno doesn't.
        number = error.errno if isinstance(error, OSError) else None
        known = number in errno.errorcode and not isinstance(error, socket.gaierror)
        reason = os.strerror(number) if number and known else getattr(error, "strerror", None) or str(error)
        print(
            f"getimg-simulator: cannot listen on {options.host}:{options.port}: {reason}",
            file=sys.stderr,
        )
        return 1
    simulator = Simulator(
        host=options.host,
        api_key=options.api_key,
        settings=settings,
        account=Account(options.balance),
        blocked_words=options.blocked_words,
    )
    serve(simulator, listener, verbose=options.verbose)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = OneSentenceParser(
        prog="getimg-simulator",
        description="A local simulator of the getimg.ai API. Prints its URL once it is listening; stop it with Ctrl-C.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument(
        "--port", type=_port, default=DEFAULT_PORT, help="port to listen on; 0 picks a free one"
    )
    parser.add_argument(
        "--api-key", type=_api_key, default=DEFAULT_API_KEY, help="the key that clients must send"
    )
    parser.add_argument("--balance", type=_balance, default=DEFAULT_BALANCE, help="USD in the account")
    parser.add_argument(
        "--blocked-words",
        type=_words,
        default=",".join(BLOCKED_WORDS),
        metavar="WORD,WORD",
        help="words in a prompt, or in the URL of a reference image, that are refused with 422",
    )
    for name, field in Changes.model_fields.items():
        default = "" if field.default is None else f" (default: {field.default})"
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            # Absent unless given: a default would override the preset.
            default=argparse.SUPPRESS,
            metavar="N" if field.annotation is int else "SECONDS" if field.annotation is float else "NAME",
            help=f"{field.description}{default}",
        )
    parser.add_argument("--verbose", action="store_true", help="log every request to stderr")
    return parser


def _balance(text: str) -> Decimal:
    try:
        return parse_balance(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _port(text: str) -> int:
    if text.isascii() and text.isdecimal() and int(text) <= 65535:
        return int(text)
    raise argparse.ArgumentTypeError(f"the port must be a number from 0 to 65535, got {text!r}")


def _api_key(text: str) -> str:
    # Must be valid in an HTTP header.
    if text.isascii() and text.isprintable() and text and " " not in text:
        return text
    raise argparse.ArgumentTypeError("the key must be printable ASCII text without spaces")


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


if __name__ == "__main__":
    sys.exit(main())
