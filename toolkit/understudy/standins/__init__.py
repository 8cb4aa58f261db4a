"""Servers that stand in for the real ones where those are not to be had: demo and tests.

They open the real sockets in the real order, say the real lines, fail in the real ways and answer
real requests; they carry no media and no cameras. Each runs by itself::

    python -m understudy.standins.mediamtx [FILE]
    python -m understudy.standins.camera_service [--activated]
"""
