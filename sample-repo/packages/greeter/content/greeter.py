"""An ordinary program that knows nothing of tdie: it greets whoever asks over HTTP."""

from __future__ import annotations

import argparse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def main() -> None:
    """Serve until somebody ends us."""
    words = argparse.ArgumentParser()
    words.add_argument("--port", type=int, required=True)
    words.add_argument("--greeting", required=True)
    given = words.parse_args()

    class Greeter(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = f"{given.greeting}, you asked for {self.path}\n".encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    ThreadingHTTPServer(("127.0.0.1", given.port), Greeter).serve_forever()


main()
