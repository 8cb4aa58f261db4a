"""Answer every connection with a line, but listen only after some time.

Arguments: seconds until then, and HOST:PORT of each port (else they are in HTTP and ADMIN).
A line "end" has it end itself.
"""

import os
import select
import socket
import sys
import time

slowness_s, *addresses = sys.argv[1:]
if slowness_s == "dies":
    sys.exit("it dies at its start, as it was told")
time.sleep(float(slowness_s))
opened: dict[int, socket.socket] = {}
poll = select.poll()


def watch(one: socket.socket) -> None:
    opened[one.fileno()] = one
    poll.register(one, select.POLLIN)


listeners = []
for address in addresses or [os.environ["HTTP"], os.environ["ADMIN"]]:
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    listeners.append(
        socket.create_server((host.strip("[]"), int(port)), family=family, backlog=4096)
    )
    watch(listeners[-1])
while True:
    for descriptor, _event in poll.poll():
        one = opened[descriptor]
        if one in listeners:
            watch(one.accept()[0])
            continue
        asked = one.recv(100)
        if asked == b"end\n":
            sys.exit(1)
        if asked:
            one.sendall(b"%d %d " % (os.getpid(), one.getsockname()[1]) + asked)
        else:
            poll.unregister(one)
            opened.pop(descriptor).close()
