"""Answer on port 8003, wherever that is, with the number of this process."""

import http.server
import os
import sys
import time

PORT = 8003


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = str(os.getpid()).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


print("started", flush=True)
time.sleep(float(sys.argv[1]))
http.server.ThreadingHTTPServer(("", PORT), Handler).serve_forever()
