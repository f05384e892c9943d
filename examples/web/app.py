#!/usr/bin/env python3
"""The example's web application: counts visits in Redis and reads a greeting from PostgreSQL.

    GET /          the page
    GET /api       the same as JSON: {"visits", "greeting", "served_by"}
    GET /healthz   200 when both servers behind it answer, else 503 with the reason

`app.py --check` asks /healthz itself: a health check for an image without an HTTP client. Settings come from the environment:
PORT, REDIS_HOST, DB_HOST, DB_NAME, DB_USER, and DB_PASSWORD_FILE, the path of a secret (or DB_PASSWORD).
"""

import html
import json
import os
import signal
import socket
import sys
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PORT = int(os.environ.get("PORT", "8000"))

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>orch example</title>
<h1>{greeting}</h1>
<p>Visit <strong id="visits">{visits}</strong>, counted by redis; the line above is a row of postgresql.
<p><small>Served by {served_by}.</small>
</html>
"""


def connect_redis():
    """A client of the Redis server; it connects at its first command, and pools connections between threads."""
    import redis

    return redis.Redis(host=os.environ.get("REDIS_HOST", "redis"), socket_connect_timeout=2, socket_timeout=2)


def connect_database():
    """A new connection to PostgreSQL, opened now."""
    import psycopg2

    secret = os.environ.get("DB_PASSWORD_FILE")
    return psycopg2.connect(
        host=os.environ.get("DB_HOST", "db"),
        dbname=os.environ.get("DB_NAME", "app"),
        user=os.environ.get("DB_USER", "app"),
        password=Path(secret).read_text().strip() if secret else os.environ.get("DB_PASSWORD"),
        connect_timeout=2,
    )


def query(statement: str):
    """The first column of the first row that a statement gives, or None."""
    connection = connect_database()
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
            row = cursor.fetchone()
            return row[0] if row else None
    finally:
        connection.close()


class Handler(BaseHTTPRequestHandler):
    """Answers one request; `counter` is the Redis client all of them share."""

    counter = None
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        try:
            if self.path == "/healthz":
                self.counter.ping()
                query("select 1")
                self.answer(200, "text/plain", "ok\n")
            elif self.path in ("/", "/api"):
                facts = {
                    "visits": self.counter.incr("visits"),
                    "greeting": query("select text from greeting order by id limit 1"),
                    "served_by": socket.gethostname(),
                }
                if self.path == "/api":
                    self.answer(200, "application/json", json.dumps(facts) + "\n")
                else:
                    self.answer(200, "text/html; charset=utf-8", PAGE.format(**{k: html.escape(str(v)) for k, v in facts.items()}))
            else:
                self.answer(404, "text/plain", "not found\n")
        except Exception as error:  # Whatever is wrong behind this server, its client is told and the next request is served.
            self.log_error("%s: %s", type(error).__name__, str(error).strip())
            self.answer(503, "text/plain", f"{type(error).__name__}: {error}\n")

    def answer(self, status: int, kind: str, body: str) -> None:
        """Sends a whole response."""
        data = body.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_request(self, code="-", size="-") -> None:
        """Logs requests, but not the health check that comes every few seconds."""
        if self.path != "/healthz" or code != 200:
            super().log_request(code, size)


def check() -> int:
    """0 if the server in this container says that it is healthy."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/healthz", timeout=4) as response:
            return 0 if response.status == 200 else 1
    except urllib.error.HTTPError as error:
        print(error.read().decode().strip())
    except OSError as error:
        print(error)
    return 1


def serve() -> None:
    """Serves until SIGTERM."""
    # The first process of a container has no default signal handlers: without this, stopping it would take the whole grace period.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    Handler.counter = connect_redis()
    server = ThreadingHTTPServer(("", PORT), Handler)
    server.daemon_threads = True
    print(f"serving on port {PORT}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    sys.exit(check() if "--check" in sys.argv else serve())
