"""The bus of a node: what its hosts publish is on disk before they are told so, and goes to one replica of each subscriber.

| module | what is in it |
|---|---|
| `frames.py` `client.py` | what hosts use: standard library only |
| `values.py` `lanes.py` `table.py` | pure: messages, who waits for what and when it is tried again, who subscribes |
| `file.py` `store.py` | the sqlite file, and the one thread that writes it: many publishes share one fsync |
| `bus.py` `server.py` | what happens to a message; the socket hosts connect to |
| `directory.py` `peers.py` | where replicas of a subscriber are, and the way to their nodes |
"""
