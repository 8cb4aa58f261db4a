"""A stand-in for MediaMTX, from its outside: settings, sockets, log lines, control API, RTSP.

``python -m understudy.standins.mediamtx [FILE]`` behaves as ``mediamtx [FILE]`` does, of the
version that ``UNDERSTUDY_STANDIN_MEDIAMTX_VERSION`` names (v1.20.1 by default); where versions
differ, the difference follows the real one from v1.13.1 on. It relays RTSP over TCP from a
publisher to readers and knows no other media: RTMP, HLS, WebRTC, SRT and MoQ are open sockets.

It uses threads and imports little, because a test pays for its start: it answers before a program
would have imported asyncio.
"""
