// Calls of openai for Node.js: each case's outcome is a line of JSON. Run by node_client.py.
import assert from "node:assert/strict";
import OpenAI, { toFile } from "openai";

const { SUITE_URL, SUITE_KEY, SUITE_LIMITED_KEY } = process.env;
const { SUITE_MODEL: model, SUITE_SCRIPTED: scripted } = process.env;
const clientOf = (more = {}) =>
  new OpenAI({ baseURL: `${SUITE_URL}/v1`, apiKey: SUITE_KEY, maxRetries: 0, ...more });
const client = clientOf();
const messages = [
  { role: "developer", content: "Be brief.", name: "boss" },
  { role: "user", content: [{ type: "text", text: "Tell me about Python." }] },
];
const weather = {
  type: "function",
  function: {
    name: "weather",
    description: "The weather of a city",
    parameters: {
      type: "object",
      properties: { city: { type: "string", enum: ["Bern", "Oslo"] } },
      required: ["city"],
    },
  },
};
const schema = {
  type: "object",
  properties: { sure: { type: "boolean" } },
  required: ["sure"],
  additionalProperties: false,
};
const every = {
  frequency_penalty: 0.1,
  logit_bias: { 5: -1 },
  max_completion_tokens: 16,
  metadata: { a: "b" },
  n: 1,
  parallel_tool_calls: true,
  presence_penalty: 0.1,
  prompt_cache_key: "cache",
  reasoning_effort: "low",
  response_format: { type: "text" },
  safety_identifier: "me",
  seed: 1,
  service_tier: "auto",
  stop: ["\n\n\n"],
  store: false,
  temperature: 1,
  top_p: 1,
  user: "me",
  verbosity: "low",
};
const chat = { model, messages, max_completion_tokens: 16 };
const text = { model, prompt: "Once", max_tokens: 16 };
const asked = { model, input: "Tell me about Python.", max_output_tokens: 16 };

async function rejects(promise, kind, check = () => true) {
  await assert.rejects(promise, (error) => {
    assert.ok(error instanceof kind, `${error.constructor.name}: ${error.message}`);
    assert.ok(check(error), JSON.stringify({ code: error.code, param: error.param, type: error.type }));
    return true;
  });
}

async function pieces(stream) {
  const found = [];
  for await (const piece of stream) found.push(piece);
  assert.ok(found.length > 0);
  return found;
}

const line = (id) =>
  JSON.stringify({ custom_id: id, method: "POST", url: "/v1/chat/completions", body: chat });
const upload = async (more = {}) =>
  client.files.create({
    file: await toFile(Buffer.from(line("a") + "\n"), "input.jsonl"),
    purpose: "batch",
    ...more,
  });

const cases = {
  "chat.create": async () => {
    const answer = await client.chat.completions.create(chat);
    assert.equal(answer.object, "chat.completion");
    assert.equal(answer.model, model);
    assert.equal(typeof answer.choices[0].message.content, "string");
    assert.ok(answer.usage.completion_tokens > 0);
  },
  "chat.create: all parameters": async () => {
    const answer = await client.chat.completions.create({ ...chat, ...every });
    assert.ok(["stop", "length"].includes(answer.choices[0].finish_reason));
  },
  "chat.create: logprobs": async () => {
    const more = { logprobs: true, top_logprobs: 2 };
    const answer = await client.chat.completions.create({ ...chat, ...more });
    assert.ok(answer.choices[0].logprobs.content[0].top_logprobs.length > 0);
  },
  "chat.create: json_schema": async () => {
    const answer = await client.chat.completions.create({
      model,
      messages,
      response_format: { type: "json_schema", json_schema: { name: "a", strict: true, schema } },
    });
    assert.equal(typeof JSON.parse(answer.choices[0].message.content).sure, "boolean");
  },
  "chat.create: tools": async () => {
    const more = { tools: [weather], tool_choice: "required", max_completion_tokens: 200 };
    const answer = await client.chat.completions.create({ ...chat, ...more, model: scripted });
    const [call] = answer.choices[0].message.tool_calls;
    assert.equal(call.function.name, "weather");
    assert.ok(["Bern", "Oslo"].includes(JSON.parse(call.function.arguments).city));
  },
  "chat.create: stream": async () => {
    const stream = await client.chat.completions.create({ ...chat, stream: true });
    const found = await pieces(stream);
    assert.ok(found.every((piece) => piece.object === "chat.completion.chunk"));
  },
  "chat.create: stream, all parameters": async () => {
    const more = { ...every, stream: true, stream_options: { include_usage: true } };
    const found = await pieces(await client.chat.completions.create({ ...chat, ...more }));
    assert.ok(found.at(-1).usage.total_tokens > 0);
  },
  "chat.create: stream, tools": async () => {
    const more = { model: scripted, tools: [weather], stream: true };
    const found = await pieces(await client.chat.completions.create({ ...chat, ...more }));
    const calls = found.flatMap((piece) => piece.choices[0]?.delta.tool_calls ?? []);
    assert.equal(calls[0].function.name, "weather");
    const words = calls.map((call) => call.function.arguments ?? "").join("");
    assert.deepEqual(JSON.parse(words), { city: "Bern" });
  },
  "chat.stream": async () => {
    const final = await client.chat.completions.stream(chat).finalChatCompletion();
    assert.equal(final.object, "chat.completion");
  },
  "chat.parse": async () => {
    const answer = await client.chat.completions.parse({
      model,
      messages,
      response_format: { type: "json_schema", json_schema: { name: "a", strict: true, schema } },
    });
    assert.equal(answer.object, "chat.completion");
  },
  "chat.create: raw response": async () => {
    const raw = await client.chat.completions.create(chat).asResponse();
    assert.equal(raw.status, 200);
    assert.ok(raw.headers.get("x-request-id"));
    assert.equal((await raw.json()).object, "chat.completion");
  },
  "chat.create: with response": async () => {
    const { data, response, request_id } = await client.chat.completions.create(chat).withResponse();
    assert.equal(data._request_id, request_id);
    assert.equal(response.headers.get("x-request-id"), request_id);
  },
  "chat.create: stream is aborted": async () => {
    const stream = await client.chat.completions.create({ model, messages, stream: true });
    for await (const _ of stream) break;
    assert.ok(stream.controller.signal.aborted);
  },
  "chat.create: image": async () => {
    const url = "data:image/png;base64,iVBORw0KGgo=";
    const content = [{ type: "image_url", image_url: { url } }];
    const asked = { model: scripted, messages: [{ role: "user", content }] };
    assert.equal((await client.chat.completions.create(asked)).object, "chat.completion");
  },
  "chat.create: store": async () => {
    const metadata = { suite: "openai-node" };
    const answer = await client.chat.completions.create({ ...chat, store: true, metadata });
    const stored = await client.chat.completions.retrieve(answer.id);
    assert.deepEqual(stored.choices, answer.choices);
    assert.deepEqual(stored.metadata, metadata);
  },
  "chat.create: store, streamed": async () => {
    const stream = await client.chat.completions.create({ ...chat, store: true, stream: true });
    let id, text = "";
    for await (const chunk of stream) {
      id = chunk.id;
      text += chunk.choices[0]?.delta.content ?? "";
    }
    const stored = await client.chat.completions.retrieve(id);
    assert.equal(stored.choices[0].message.content, text);
  },
  "chat.list": async () => {
    const metadata = { list: `${Date.now()}` };
    const ids = [];
    for (let count = 0; count < 3; count++) {
      const answer = await client.chat.completions.create({ ...chat, store: true, metadata });
      ids.push(answer.id);
    }
    const listed = [];
    for await (const stored of client.chat.completions.list({ metadata, limit: 2 })) {
      listed.push(stored.id);
    }
    assert.deepEqual(listed, ids);
  },
  "chat.messages": async () => {
    const answer = await client.chat.completions.create({ ...chat, store: true });
    const { data } = await client.chat.completions.messages.list(answer.id);
    const asked = chat.messages.map((one) => one.content);
    assert.deepEqual(data.map((one) => one.content_parts ?? one.content), asked);
  },
  "chat.update": async () => {
    const { id } = await client.chat.completions.create({ ...chat, store: true });
    const changed = await client.chat.completions.update(id, { metadata: { a: "b" } });
    assert.deepEqual(changed.metadata, { a: "b" });
  },
  "chat.delete": async () => {
    const { id } = await client.chat.completions.create({ ...chat, store: true });
    assert.equal((await client.chat.completions.delete(id)).deleted, true);
    await assert.rejects(client.chat.completions.retrieve(id), { status: 404 });
  },

  "completions.create": async () => {
    const answer = await client.completions.create(text);
    assert.equal(answer.object, "text_completion");
    assert.equal(typeof answer.choices[0].text, "string");
  },
  "completions.create: all parameters": async () => {
    const answer = await client.completions.create({
      ...text,
      frequency_penalty: 0.1,
      logit_bias: { 5: -1 },
      logprobs: 1,
      n: 1,
      presence_penalty: 0.1,
      seed: 1,
      stop: "\n\n\n",
      temperature: 1,
      top_p: 1,
      user: "me",
    });
    assert.equal(answer.choices.length, 1);
  },
  "completions.create: stream": async () => {
    await pieces(await client.completions.create({ ...text, stream: true }));
  },

  "embeddings.create": async () => {
    const answer = await client.embeddings.create({ model, input: ["one", "two"] });
    assert.equal(answer.data.length, 2);
    assert.equal(typeof answer.data[0].embedding[0], "number");
  },
  "embeddings.create: float": async () => {
    const more = { encoding_format: "float", user: "me" };
    const answer = await client.embeddings.create({ model, input: "one", ...more });
    assert.equal(typeof answer.data[0].embedding[0], "number");
  },
  "embeddings.create: tokens": async () => {
    const answer = await client.embeddings.create({ model, input: [[1, 2, 3]] });
    assert.equal(answer.data.length, 1);
  },

  "responses.create": async () => {
    const answer = await client.responses.create(asked);
    assert.equal(answer.object, "response");
    assert.equal(answer.model, model);
    assert.equal(typeof answer.output_text, "string");
  },
  "responses.create: all parameters": async () => {
    const answer = await client.responses.create({
      ...asked,
      instructions: "Be brief.",
      max_tool_calls: 1,
      metadata: { a: "b" },
      parallel_tool_calls: true,
      prompt_cache_key: "cache",
      reasoning: { effort: "low" },
      safety_identifier: "me",
      service_tier: "auto",
      store: false,
      temperature: 1,
      text: { format: { type: "text" } },
      top_p: 1,
      truncation: "disabled",
      user: "me",
    });
    assert.deepEqual(answer.metadata, { a: "b" });
  },
  "responses.create: stream": async () => {
    const found = await pieces(await client.responses.create({ ...asked, stream: true }));
    assert.equal(found[0].type, "response.created");
    assert.match(found.at(-1).type, /^response\.(completed|incomplete)$/);
  },
  "responses.stream": async () => {
    const final = await client.responses.stream(asked).finalResponse();
    assert.equal(final.object, "response");
  },
  "responses.create: tools": async () => {
    const { function: own } = weather;
    const answer = await client.responses.create({
      model: scripted,
      input: "Weather?",
      tools: [{ type: "function", strict: false, ...own }],
      tool_choice: "required",
    });
    assert.equal(answer.output.at(-1).type, "function_call");
  },
  "responses.create: stream, tools": async () => {
    const { function: own } = weather;
    const tools = [{ type: "function", strict: false, ...own }];
    const more = { model: scripted, input: "Weather?", tools, stream: true };
    const found = await pieces(await client.responses.create(more));
    const done = found.find((event) => event.type === "response.function_call_arguments.done");
    assert.deepEqual(JSON.parse(done.arguments), { city: "Bern" });
  },
  "responses.create: store": async () => {
    const answer = await client.responses.create({ ...asked, store: true });
    const stored = await client.responses.retrieve(answer.id);
    assert.equal(stored.id, answer.id);
    assert.deepEqual(stored.output, answer.output);
    const next = await client.responses.create({
      ...asked,
      input: "And then?",
      store: true,
      previous_response_id: answer.id,
    });
    const items = await pieces(client.responses.inputItems.list(next.id, { order: "asc" }));
    assert.equal(items.length, 3);
    await client.responses.delete(answer.id);
    await rejects(client.responses.retrieve(answer.id), OpenAI.NotFoundError);
    await rejects(
      client.responses.create({ ...asked, previous_response_id: answer.id }),
      OpenAI.NotFoundError,
    );
    assert.equal((await client.responses.retrieve(next.id)).previous_response_id, answer.id);
  },
  "responses.create: background": () => client.responses.create({ ...asked, background: true }),
  "responses.compact": () => client.responses.compact({ model, input: "Hello" }),
  "responses.inputTokens.count": async () => {
    const answer = await client.responses.inputTokens.count({ model, input: "Hello you" });
    assert.ok(answer.input_tokens > 0);
  },

  "models.list": async () => {
    const found = await pieces(client.models.list());
    assert.ok(found.some((one) => one.id === model && one.object === "model"));
  },
  "models.retrieve": async () => assert.equal((await client.models.retrieve(model)).id, model),
  "models.delete": () => client.models.delete(model),

  "files.create, retrieve, content, list, delete": async () => {
    const file = await upload();
    assert.equal((await client.files.retrieve(file.id)).filename, "input.jsonl");
    assert.equal(await (await client.files.content(file.id)).text(), line("a") + "\n");
    const found = await pieces(client.files.list({ purpose: "batch", limit: 100, order: "asc" }));
    assert.ok(found.some((one) => one.id === file.id));
    assert.equal((await client.files.delete(file.id)).deleted, true);
    await rejects(client.files.retrieve(file.id), OpenAI.NotFoundError);
  },
  "files.create: expires_after": async () => {
    const file = await upload({ expires_after: { anchor: "created_at", seconds: 3600 } });
    assert.equal(file.expires_at - file.created_at, 3600);
  },
  "files.create: other purpose": async () => {
    await rejects(upload({ purpose: "fine-tune" }), OpenAI.BadRequestError);
  },
  "batches.create, retrieve, list, output": async () => {
    const file = await upload();
    const batch = await client.batches.create({
      input_file_id: file.id,
      endpoint: "/v1/chat/completions",
      completion_window: "24h",
      metadata: { a: "b" },
    });
    let now = batch;
    for (let turn = 0; turn < 300 && !now.output_file_id; turn++) {
      await new Promise((resolve) => setTimeout(resolve, 100)); // nothing tells users of its end
      now = await client.batches.retrieve(batch.id);
    }
    assert.equal(now.status, "completed");
    const output = await (await client.files.content(now.output_file_id)).text();
    assert.equal(JSON.parse(output.trim()).custom_id, "a");
    const found = await pieces(client.batches.list({ limit: 10 }));
    assert.ok(found.some((one) => one.id === batch.id));
  },
  "batches.cancel": async () => {
    const file = await upload();
    const batch = await client.batches.create({
      input_file_id: file.id,
      endpoint: "/v1/chat/completions",
      completion_window: "24h",
    });
    try {
      const { status } = await client.batches.cancel(batch.id);
      assert.match(status, /^cancell(ing|ed)$/);
    } catch (error) {
      // It may be over before that.
      assert.ok(error instanceof OpenAI.ConflictError || error.status === 400, error.message);
    }
  },

  "moderations.create": () => client.moderations.create({ model, input: "Hello" }),
  "images.generate": () => client.images.generate({ model, prompt: "A cat" }),
  "audio.speech.create": () => client.audio.speech.create({ model, voice: "alloy", input: "Hello" }),
  "audio.transcriptions.create": async () => {
    const file = await toFile(Buffer.from("RIFF"), "a.wav");
    await client.audio.transcriptions.create({ model, file });
  },
  "vectorStores.list": () => client.vectorStores.list(),
  "conversations.create": () => client.conversations.create(),

  "error: AuthenticationError": async () => {
    const wrong = clientOf({ apiKey: "sk-wrong" });
    await rejects(wrong.chat.completions.create(chat), OpenAI.AuthenticationError, (error) =>
      error.code === "invalid_api_key");
  },
  "error: AuthenticationError of a stream": async () => {
    const wrong = clientOf({ apiKey: "sk-wrong" });
    const stream = wrong.chat.completions.create({ ...chat, stream: true });
    await rejects(stream, OpenAI.AuthenticationError);
  },
  "error: NotFoundError of a model": async () => {
    const none = client.chat.completions.create({ ...chat, model: "none" });
    await rejects(none, OpenAI.NotFoundError, (error) => error.code === "model_not_found");
    await rejects(client.models.retrieve("none"), OpenAI.NotFoundError);
  },
  "error: NotFoundError of a path": async () => {
    await rejects(client.get("/none"), OpenAI.NotFoundError);
  },
  "error: BadRequestError": async () => {
    const wrong = [
      () => client.chat.completions.create({ ...chat, messages: "Hello" }),
      () => client.chat.completions.create({ ...chat, temperature: "hot" }),
      () => client.chat.completions.create({ ...chat, model: 1 }),
      () => client.embeddings.create({ model, input: [] }),
      () => client.responses.create({ ...asked, input: 1 }),
    ];
    for (const [number, ask] of wrong.entries()) {
      await rejects(ask(), OpenAI.BadRequestError, (error) =>
        typeof error.code === "string" || assert.fail(`code of ${number}: ${error.code}`));
    }
  },
  "error: RateLimitError": async () => {
    const limited = clientOf({ apiKey: SUITE_LIMITED_KEY });
    await limited.embeddings.create({ model, input: "one" });
    await rejects(limited.embeddings.create({ model, input: "one" }), OpenAI.RateLimitError, (error) =>
      Number(error.headers.get("retry-after")) > 0);
  },
  "error: APIUserAbortError": async () => {
    const controller = new AbortController();
    const answer = client.chat.completions.create(chat, { signal: controller.signal });
    controller.abort();
    await rejects(answer, OpenAI.APIUserAbortError);
  },
  "error: APIConnectionTimeoutError": async () => {
    await rejects(client.chat.completions.create(chat, { timeout: 1 }), OpenAI.APIConnectionTimeoutError);
  },
  "retries: a 429 is tried again": async () => {
    let tries = 0;
    const counting = clientOf({
      apiKey: SUITE_LIMITED_KEY,
      maxRetries: 1,
      fetch: async (...request) => {
        tries += 1;
        const answer = await fetch(...request);
        // Its own waiting time would be most of a minute.
        return new Response(answer.body, {
          status: answer.status,
          headers: { ...Object.fromEntries(answer.headers), "retry-after-ms": "1" },
        });
      },
    });
    await rejects(counting.embeddings.create({ model, input: "one" }), OpenAI.RateLimitError);
    assert.equal(tries, 2);
  },
  "api-key header of Azure": async () => {
    const headers = { "api-key": SUITE_KEY, authorization: null };
    const azure = clientOf({ defaultHeaders: headers, baseURL: `${SUITE_URL}/openai/v1` });
    assert.equal((await azure.chat.completions.create(chat)).object, "chat.completion");
  },
};

for (const [name, run] of Object.entries(cases)) {
  let outcome = "passed", why = "";
  try {
    await run();
  } catch (error) {
    outcome = "failed";
    why = `${error.constructor.name}: ${error.message}`.split("\n").slice(0, 3).join(" ");
  }
  process.stdout.write(JSON.stringify({ case: name, outcome, why }) + "\n");
}
