// What a user of OpenAI's npm package does; prints one JSON line. Arguments: base URL, question.
import OpenAI from "openai";

const [baseURL, question] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "sk-anything", maxRetries: 0 });
const ask = {
  model: "default",
  messages: [{ role: "user", content: question }],
  temperature: 0,
};

const { data: chat, request_id } = await client.chat.completions.create(ask).withResponse();
let streamed = "";
let chunks = 0;
for await (const chunk of await client.chat.completions.create({ ...ask, stream: true })) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
  chunks += 1;
}
const models = [];
for await (const model of client.models.list()) models.push(model.id);
const embedded = await client.embeddings.create({ model: "default", input: "Paris" });

let failure;
try {
  await client.chat.completions.create({ ...ask, model: "nobody" });
} catch (error) {
  failure = {
    isNotFound: error instanceof OpenAI.NotFoundError,
    code: error.code,
    hasRequestId: Boolean(error.requestID),
  };
}
console.log(
  JSON.stringify({
    text: chat.choices[0].message.content,
    hasRequestId: Boolean(request_id),
    streamed,
    chunks,
    models,
    dimensions: embedded.data[0].embedding.length,
    failure,
  }),
);
