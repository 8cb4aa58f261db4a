"""A health endpoint of the old kind: its port is written into it."""

import http.server
import json


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps({"status": "healthy"}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


# understudy: ignore[A101] it is only run in a private network
http.server.ThreadingHTTPServer(("0.0.0.0", 8003), Handler).serve_forever()
