# ruff: noqa: T201 - examples print
"""LlamaIndex: set FABRIC_URL, FABRIC_KEY and FABRIC_MODEL.

If the server has no public certificate: SSL_CERT_FILE=ca.pem
"""

import os

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

model = OpenAILike(
    api_base=f"{os.environ['FABRIC_URL']}/v1",
    api_key=os.environ["FABRIC_KEY"],
    model=os.environ["FABRIC_MODEL"],
    is_chat_model=True,
    max_tokens=16,
)
for chunk in model.stream_chat([ChatMessage(role="user", content="Say hello.")]):
    print(chunk.delta, end="", flush=True)
print()
