# ruff: noqa: T201 - examples print
"""openai-python: set FABRIC_URL, FABRIC_KEY and FABRIC_MODEL.

If the server has no public certificate: SSL_CERT_FILE=ca.pem
"""

import os

from openai import OpenAI

client = OpenAI(
    base_url=f"{os.environ['FABRIC_URL']}/v1",
    api_key=os.environ["FABRIC_KEY"],
)

stream = client.chat.completions.create(
    model=os.environ["FABRIC_MODEL"],
    messages=[{"role": "user", "content": "Say hello."}],
    max_tokens=16,
    stream=True,
)
for chunk in stream:
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
