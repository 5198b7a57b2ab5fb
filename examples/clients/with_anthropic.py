# ruff: noqa: T201 - examples print
"""anthropic-python: set FABRIC_URL, FABRIC_KEY and FABRIC_MODEL.

If the server has no public certificate: SSL_CERT_FILE=ca.pem
"""

import os

from anthropic import Anthropic

client = Anthropic(
    base_url=os.environ["FABRIC_URL"],
    api_key=os.environ["FABRIC_KEY"],
)

with client.messages.stream(
    model=os.environ["FABRIC_MODEL"],
    messages=[{"role": "user", "content": "Say hello."}],
    max_tokens=16,
) as stream:
    for text in stream.text_stream:
        print(text, end="", flush=True)
print()
