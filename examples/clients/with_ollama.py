# ruff: noqa: T201 - examples print
"""ollama-python: set FABRIC_URL, FABRIC_KEY and FABRIC_MODEL.

If the server has no public certificate: SSL_CERT_FILE=ca.pem
"""

import os

from ollama import Client

client = Client(
    host=os.environ["FABRIC_URL"],
    headers={"authorization": f"Bearer {os.environ['FABRIC_KEY']}"},
)

for chunk in client.chat(
    os.environ["FABRIC_MODEL"],
    messages=[{"role": "user", "content": "Say hello."}],
    options={"num_predict": 16},
    stream=True,
):
    print(chunk.message.content or "", end="", flush=True)
print()
