"""Anthropic's Messages API, translated for engines that speak the OpenAI chat API.

``docs/dialects.md`` has the table of fields.  Imports only what every dialect shares, from
``fabric_client.translation``.
"""

from fabric_client.translation.messages.request import read_prompt, translate

__all__ = ["read_prompt", "translate"]
