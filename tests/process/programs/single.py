"""A server that runs one request at a time and answers nothing meanwhile: `single.py PORT`.

`?ms=` is how long a request takes. /end?code=N ends the server with that exit code; /children starts a process that
outlives its session; /unmarked one in its session that has nothing of its environment, and says who that is.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import parse_qs, urlsplit


class Handler(BaseHTTPRequestHandler):
    """Sleeps, then says who it is."""

    def do_GET(self) -> None:
        """As above."""
        url = urlsplit(self.path)
        asked = parse_qs(url.query)
        if url.path == "/end":
            os._exit(int(asked["code"][0]))
        if url.path == "/children":
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        who = os.getpid()
        if url.path == "/unmarked":
            who = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env={}).pid
        time.sleep(float(asked.get("ms", ["0"])[0]) / 1000)
        body = str(who).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
