// openai for Node.js: set FABRIC_URL, FABRIC_KEY and FABRIC_MODEL.
// If the server has no public certificate: NODE_EXTRA_CA_CERTS=ca.pem
import OpenAI from "openai";

const client = new OpenAI({
  baseURL: `${process.env.FABRIC_URL}/v1`,
  apiKey: process.env.FABRIC_KEY,
});

const stream = await client.chat.completions.create({
  model: process.env.FABRIC_MODEL,
  messages: [{ role: "user", content: "Say hello." }],
  max_tokens: 16,
  stream: true,
});
for await (const chunk of stream) process.stdout.write(chunk.choices[0]?.delta.content ?? "");
process.stdout.write("\n");
