"""A server of HTTP with a thread for each connection: PORT REDIS SQL, and certificate and key where it is encrypted. Each request asks Redis twice and a database once (0: none of it), over
connections of the thread, with the usual clients where they are installed."""

import http.server
import socket
import ssl
import sys
import threading

try:
    import redis
except ImportError:
    redis = None

port, redis_port, sql_port = map(int, sys.argv[1:4])
own = threading.local()


class Plain:
    """As much of a client of Redis as is needed."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port))

    def get(self, key):
        self.socket.sendall(b"*2\r\n$3\r\nGET\r\n$%d\r\n%s\r\n" % (len(key), key.encode()))
        self.socket.recv(1000)


def cache():
    if not hasattr(own, "cache"):
        own.cache = redis.Redis(port=redis_port) if redis else Plain(redis_port)
    return own.cache


def database():
    if not hasattr(own, "database"):
        import pymysql

        own.database = pymysql.connect(host="127.0.0.1", port=sql_port, user="root")
    return own.database


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        number = self.path.rsplit("/", 1)[-1]
        if redis_port:
            cache().get(f"t{number}:a")
        if sql_port:
            with database().cursor() as cursor:
                cursor.execute(f"SELECT 't{number}'")
                cursor.fetchall()
        if redis_port:
            cache().get(f"t{number}:b")
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 256


server = Server(("127.0.0.1", port), Handler)
if sys.argv[4:]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*sys.argv[4:6])
    # Each thread shakes hands by itself: one that only looks whether something listens holds up nobody.
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
server.serve_forever()
