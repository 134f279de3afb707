"""A camera on the network: MJPEG over HTTP, frozen or of another size at a word."""

import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

from polyarm.real_robot.recorder import encode


class State:
    """What the server does; `shown` counts its pictures, and each one's grey is three times its number."""

    def __init__(self, size, rate_hz):
        self.size, self.rate_hz, self.frozen, self.shown = size, rate_hz, False, 0


@contextmanager
def serve(size=(48, 64), rate_hz=30):
    """(url, State) of a server that lives as long as the block."""
    state, over = State(size, rate_hz), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            try:
                while not over.wait(1 / state.rate_hz):
                    if state.frozen:
                        continue
                    grey = np.full((*state.size, 3), 3 * (state.shown % 80), "u1")
                    raw = encode(grey, "jpeg")
                    self.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(raw))
                    self.wfile.write(raw + b"\r\n")
                    state.shown += 1
            except OSError:  # the reader went
                pass

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", state
    finally:
        over.set()
        server.shutdown()
        server.server_close()


def now_in(seconds):
    return time.monotonic_ns() + round(1e9 * seconds)
