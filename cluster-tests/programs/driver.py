"""Asks a server for /t/0x, /t/1x, ... over so many connections at a time: PORT TRACES CONNECTIONS RATE (0: as fast as it goes), and
`tls` where it is encrypted."""

import http.client
import itertools
import ssl
import sys
import threading
import time

port, traces, connections, rate = map(int, sys.argv[1:5])
context = ssl._create_unverified_context() if sys.argv[5:] == ["tls"] else None
numbers = itertools.count()
begin = time.monotonic()
failures = []


def ask():
    if context:
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=30, context=context)
    else:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    for number in numbers:
        if number >= traces or failures:
            break
        if rate:
            time.sleep(max(0.0, begin + number / rate - time.monotonic()))
        try:
            connection.request("GET", f"/t/{number}x")
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                failures.append(f"{number}: {answer.status}")
        except Exception as error:
            failures.append(f"{number}: {error!r}")
    connection.close()


threads = [threading.Thread(target=ask) for _ in range(connections)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
if failures:
    sys.exit(f"{failures[:5]}")
