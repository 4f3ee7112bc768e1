// The Messages API as Amazon Bedrock and Google Vertex AI offer it, in front of the loopback API: other paths, the model in
// the path, and with Bedrock a stream of binary frames
// (https://docs.aws.amazon.com/AmazonS3/latest/API/RESTSelectObjectAppendix.html has the frames).

import http from 'node:http';

const ROUTES = {
  bedrock: /^\/model\/([^/]+)\/(invoke|invoke-with-response-stream)$/,
  vertex: /^\/(?:v1\/)?projects\/[^/]+\/locations\/[^/]+\/publishers\/anthropic\/models\/([^/:]+):(rawPredict|streamRawPredict)$/,
};

/** Of node:zlib since Node.js 20.15; older ones run these tests, too. */
function crc32(bytes) {
  let crc = ~0;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc >>> 0;
}

const number = (value, bytes = 4) => {
  const out = Buffer.alloc(bytes);
  out.writeUIntBE(value, 0, bytes);
  return out;
};

function header(name, value) {
  return Buffer.concat([number(name.length, 1), Buffer.from(name), number(7, 1), number(value.length, 2), Buffer.from(value)]);
}

/** One event of the Messages API in a frame of Bedrock's. */
function frame(event) {
  const payload = Buffer.from(JSON.stringify({ bytes: Buffer.from(event).toString('base64') }));
  const headers = Buffer.concat([
    header(':event-type', 'chunk'),
    header(':content-type', 'application/json'),
    header(':message-type', 'event'),
  ]);
  const prelude = Buffer.concat([number(headers.length + payload.length + 16), number(headers.length)]);
  const whole = Buffer.concat([prelude, number(crc32(prelude)), headers, payload]);
  return Buffer.concat([whole, number(crc32(whole))]);
}

const bodyOf = async (stream) => {
  let text = '';
  for await (const piece of stream) text += piece;
  return text;
};

/** `{url, calls, close}` of a cloud in front of the loopback API at `url`. A call is `{model, stream, body, headers}`. */
export async function startCloudApi(cloud, url) {
  const calls = [];
  const server = http.createServer(async (request, response) => {
    const [, model, action] = ROUTES[cloud].exec(decodeURIComponent(request.url.split('?')[0])) ?? [];
    if (!model) return response.writeHead(404).end();
    const stream = action.includes('tream');
    const body = JSON.parse(await bodyOf(request));
    calls.push({ model, stream, body, headers: request.headers });
    const asked = { ...body, model: model.replace('@', '-').replace(/^(us\.)?anthropic\./, ''), stream };
    const answer = await fetch(`${url}/v1/messages`, {
      method: 'POST',
      headers: { 'content-type': 'application/json', 'x-api-key': cloud, 'anthropic-version': '2023-06-01' },
      body: JSON.stringify(asked),
    });
    const binary = cloud === 'bedrock' && stream && answer.ok;
    response.writeHead(answer.status, { 'content-type': binary ? 'application/vnd.amazon.eventstream' : answer.headers.get('content-type') });
    if (!binary) return response.end(await answer.text());
    let unread = '';
    for await (const piece of answer.body.pipeThrough(new TextDecoderStream())) {
      const lines = (unread + piece).split('\n');
      unread = lines.pop();
      for (const line of lines) if (line.startsWith('data: ')) response.write(frame(line.slice(6)));
    }
    response.end();
  });
  await new Promise((ready) => server.listen(0, '127.0.0.1', ready));
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    calls,
    close: () => new Promise((closed) => server.close(closed).closeAllConnections()),
  };
}
