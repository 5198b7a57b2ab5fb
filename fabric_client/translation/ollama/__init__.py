"""Ollama's API, translated for engines that speak the OpenAI API.

Sources: https://github.com/ollama/ollama/blob/main/docs/api.md and api/types.go.  Imports only what
every dialect shares, from ``fabric_client.translation``.
"""

from fabric_client.translation.ollama.translator import Ollama

__all__ = ["Ollama"]
