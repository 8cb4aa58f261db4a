"""Send back what comes to the first socket that systemd handed over."""

import socket

listener = socket.socket(fileno=3)
while True:
    data, sender = listener.recvfrom(2048)
    listener.sendto(data, sender)
