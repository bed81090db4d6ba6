"""Scores of candidates for one user, from `torchrec-xd serve`; standard library only.

python client.py http://127.0.0.1:8080 < body.json
"""

import json
import sys
import urllib.error
import urllib.request


def score(address, body, timeout=2.0):
    """Output to its scores, in the order of the candidates; what is refused is raised in the server's words."""
    try:
        with urllib.request.urlopen(f"{address}/score", json.dumps(body).encode(), timeout) as answer:  # noqa: S310
            return json.load(answer)["scores"]
    except urllib.error.HTTPError as error:
        raise ValueError(json.load(error)["error"]) from None


if __name__ == "__main__":
    print(json.dumps(score(sys.argv[1], json.load(sys.stdin))))
