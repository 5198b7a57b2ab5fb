#!/bin/sh
# curl: set FABRIC_URL, FABRIC_KEY and FABRIC_MODEL.
# If the server has no public certificate: curl --cacert ca.pem, or CURL_CA_BUNDLE=ca.pem
set -eu

curl --fail-with-body -sSN "$FABRIC_URL/v1/chat/completions" \
  -H "Authorization: Bearer $FABRIC_KEY" \
  -H "Content-Type: application/json" \
  -d '{"model": "'"$FABRIC_MODEL"'", "messages": [{"role": "user", "content": "Say hello."}],
       "max_tokens": 16, "stream": true}'
