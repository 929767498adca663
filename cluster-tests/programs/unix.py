"""A server of HTTP on a Unix socket, with a thread for each connection: PATH REDIS. Each request asks Redis once, through its Unix socket."""

import http.server
import socket
import socketserver
import sys


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_GET(self):
        cache = socket.socket(socket.AF_UNIX)
        cache.connect(sys.argv[2])
        key = self.path[1:].encode()
        cache.sendall(b"*2\r\n$4\r\nINCR\r\n$%d\r\n%s\r\n" % (len(key), key))
        cache.recv(100)
        cache.close()
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


Server(sys.argv[1], Handler).serve_forever()
